"""A found architecture as an experiment folder that the recipes run: pretrain.yaml, sft.yaml, dpo.yaml."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ..formulas.memory import TrainingSetup
from ..models.architecture import Architecture
from ..models.families import architecture_of
from ..models.fields import PlanError
from .fit import largest_micro_batch

ARCHITECTURE_KEYS = [
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
]
CPU_MICRO_BATCH = 8
LARGEST_GPU_MICRO_BATCH = 64


@dataclass(frozen=True)
class Schedule:
    """Batch, steps and learning rate of a pretraining run."""

    micro_batch: int
    accumulation: int
    num_ranks: int
    sequence_length: int
    max_steps: int
    learning_rate: float
    warmup_steps: int

    @property
    def tokens_per_step(self) -> int:
        return self.micro_batch * self.accumulation * self.num_ranks * self.sequence_length

    @property
    def total_tokens(self) -> int:
        return self.tokens_per_step * self.max_steps


def candidate_architecture(row: dict[str, Any], sequence_length: int) -> Architecture:
    """The architecture of one row of a search."""
    values = {key: row[key] for key in ARCHITECTURE_KEYS}
    return architecture_of(values | {"model_type": "foundry", "max_position_embeddings": sequence_length})


def plan_schedule(
    row: dict[str, Any], setup: TrainingSetup, flops: float, available_bytes: float | None
) -> Schedule:
    """Batch and learning rate by DeepSeek's fits, micro-batch by memory.

    B = 0.2920 C^0.3271 tokens and η = 0.3118 C^-0.1250 (DeepSeek LLM, arXiv:2401.02954, equation 1, fitted
    from 1e17 to 2e19 FLOPs; C is the training compute).  Warm-up: 2,000 steps, or a twentieth of a short run.
    """
    sequence, ranks = setup.sequence_length, setup.num_ranks
    batch_tokens = 0.2920 * flops**0.3271
    largest = CPU_MICRO_BATCH
    if available_bytes is not None:
        fits = largest_micro_batch(candidate_architecture(row, sequence), setup, available_bytes)
        largest = min(LARGEST_GPU_MICRO_BATCH, fits)
    per_rank = max(1, round(batch_tokens / sequence / ranks))
    accumulation = -(-per_rank // largest)
    micro_batch = max(1, round(per_rank / accumulation))
    steps = max(1, round(row["tokens"] / (micro_batch * accumulation * ranks * sequence)))
    return Schedule(
        micro_batch, accumulation, ranks, sequence, steps, _two_digits(0.3118 * flops**-0.1250),
        min(2000, -(-steps // 20)),
    )  # fmt: skip


def _two_digits(value: float) -> float:
    return float(f"{value:.1e}")


def write_experiment(
    folder: str, row: dict[str, Any], schedule: Schedule, data_dir: str | None, use_cpu: bool, words: str
) -> list[str]:
    """Write the three recipes and return their paths.

    Raises:
        PlanError: the folder already holds one of them, or has no usable name.
    """
    target = Path(folder)
    name = target.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise PlanError(
            f"emit: {str(folder)[:60]!r} does not end in a plain folder name such as recipes/my_model"
        )
    data = data_dir or f"runs/{name}/data"
    texts = {
        "pretrain.yaml": _pretrain(name, row, schedule, data, use_cpu, words),
        "sft.yaml": _sft(name, schedule, data, use_cpu),
        "dpo.yaml": _dpo(name, schedule, data, use_cpu),
    }
    for file in texts:
        if os.path.exists(target / file):
            raise PlanError(f"emit: {target / file} exists already; choose another folder or remove it")
    try:
        for file, text in texts.items():
            write_atomically(target / file, text)
    except OSError as error:
        raise PlanError(f"emit: cannot write to {target} ({error.strerror})") from error
    return [str(target / file) for file in texts]


def _lines(*blocks: dict[str, Any]) -> str:
    return (
        "\n\n".join("\n".join(f"{key}: {_yaml(value)}" for key, value in block.items()) for block in blocks)
        + "\n"
    )


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:g}"
    return str(value)


def _device(use_cpu: bool) -> dict[str, Any]:
    return {"use_cpu": True} if use_cpu else {"bf16": True}


def _pretrain(
    name: str, row: dict[str, Any], schedule: Schedule, data: str, use_cpu: bool, words: str
) -> str:
    comment = (
        f"# {words}\n"
        f"# {row['total_parameters']:,} parameters, {schedule.total_tokens:,} tokens: "
        f"{schedule.max_steps:,} steps of {schedule.tokens_per_step:,} on {schedule.num_ranks} rank(s).\n"
    )
    architecture = {key: row[key] for key in ARCHITECTURE_KEYS}
    interval = max(1, min(1000, schedule.max_steps // 10))
    training = {
        "output_dir": f"runs/{name}/pretrain",
        "max_steps": schedule.max_steps,
        "per_device_train_batch_size": schedule.micro_batch,
        "gradient_accumulation_steps": schedule.accumulation,
        "learning_rate": schedule.learning_rate,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": "{min_lr_rate: 0.1}",
        "warmup_steps": schedule.warmup_steps,
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        **_device(use_cpu),
        **({} if use_cpu else {"optim": "adamw_torch_fused", "compile_layers": True}),
        "expected_processes": schedule.num_ranks,
        "seed": 1337,
    }
    logs = {"logging_steps": 10, "eval_strategy": "steps", "eval_steps": interval, "save_steps": interval}
    return comment + _lines(
        architecture, {"data_dir": data, "sequence_length": schedule.sequence_length}, training, logs
    )


def _alignment(name: str, stage: str, before: str, data: str) -> tuple[dict, dict]:
    files = {
        "model": f"runs/{name}/{before}/model",
        "train_file": f"{data}/{stage}_train.jsonl",
        "eval_file": f"{data}/{stage}_heldout.jsonl",
        "max_eval_samples": 512,
    }
    logs = {"logging_steps": 10, "eval_strategy": "epoch", "save_strategy": "epoch"}
    return files, logs


def _sft(name: str, schedule: Schedule, data: str, use_cpu: bool) -> str:
    files, logs = _alignment(name, "sft", "pretrain", data)
    training = {
        "output_dir": f"runs/{name}/sft",
        "num_train_epochs": 2,
        "per_device_train_batch_size": schedule.micro_batch,
        "learning_rate": _two_digits(schedule.learning_rate / 10),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "max_length": schedule.sequence_length,
        **_device(use_cpu),
        "gradient_checkpointing": not use_cpu,
        "seed": 1337,
    }
    return "# Full fine-tuning at a tenth of the pretraining learning rate.\n" + _lines(files, training, logs)


def _dpo(name: str, schedule: Schedule, data: str, use_cpu: bool) -> str:
    files, logs = _alignment(name, "dpo", "sft", data)
    training = {
        "output_dir": f"runs/{name}/dpo",
        "num_train_epochs": 1,
        # Each sample is two answers, each seen by the model and its reference.
        "per_device_train_batch_size": max(1, schedule.micro_batch // 4),
        "learning_rate": _two_digits(min(schedule.learning_rate / 100, 5e-6)),
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "beta": 0.1,
        "max_length": schedule.sequence_length,
        **_device(use_cpu),
        "gradient_checkpointing": not use_cpu,
        "seed": 1337,
    }
    return (
        "# The chosen answer over the rejected one; a learning rate that full-weight DPO is usually given.\n"
        + _lines(files, training, logs)
    )
