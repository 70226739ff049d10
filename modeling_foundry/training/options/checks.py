"""Options of transformers and TRL checked against the table of refusals, before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ...settings import FoundryError
from ...terminal import console
from .alignment_refusals import SFT_AND_DPO
from .names import HELD_OUT_METRICS
from .optimizer_choice import refuse_optimizer
from .refusals import COMMON, NEVER, is_changed


def refuse_options(stage: str, arguments: Any) -> None:
    """Raise FoundryError, naming the key and what would be right, for the first option that is refused."""
    for key, (stages, words) in NEVER.items():
        if stage in stages and is_changed(arguments, key):
            raise FoundryError(f"{key}: {words}")
    for refusal in (*COMMON, *SFT_AND_DPO):
        if stage in refusal.stages and refusal.applies(arguments):
            raise FoundryError(f"{refusal.key}: {refusal.words}")
    refuse_optimizer(arguments)
    _check_metric(stage, arguments.metric_for_best_model)
    refuse_several_gpus(arguments)


def _check_metric(stage: str, name: str | None) -> None:
    known = HELD_OUT_METRICS[stage]
    if name is not None and name.removeprefix("eval_") not in known:
        raise FoundryError(
            f"metric_for_best_model: {name} is not computed; expected {', '.join(sorted(known))}"
        )


def refuse_several_gpus(arguments: Any) -> None:
    """One process that sees several GPUs would train by ``nn.DataParallel``, which nothing here accounts for."""
    if arguments.n_gpu > 1:
        raise FoundryError(
            f"launch: 1 process sees {arguments.n_gpu} GPUs; start as many processes (accelerate launch --config_file "
            "accelerate_configs/ddp.yaml), or show it one with CUDA_VISIBLE_DEVICES=0"
        )


def refuse_missing_gpus(arguments: Any, environment: Mapping[str, str] = os.environ) -> None:
    """Called before TrainingArguments looks for a device, which names neither ranks nor GPUs.

    Raises:
        FoundryError: fewer GPUs than processes, or mixed precision that this machine cannot compute in.
    """
    if arguments.use_cpu:
        return
    num_ranks, num_gpus = int(environment.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    started = (
        f"{num_ranks} process{'es were' if num_ranks > 1 else ' was'} started on this machine, which has "
    )
    if 0 < num_gpus < num_ranks and environment.get("ACCELERATE_USE_CPU", "false").lower() not in (
        "true",
        "1",
    ):
        raise FoundryError(
            f"launch: {started}{num_gpus} GPU{'s' * (num_gpus > 1)}; give accelerate launch --num_processes={num_gpus}"
        )
    wants_bf16 = arguments.bf16 or (arguments.bf16 is None and not arguments.fp16)
    if not num_gpus and (wants_bf16 or arguments.fp16):
        raise FoundryError(
            f"{'bf16' if wants_bf16 else 'fp16'}: {started}no GPU; train on a machine with {num_ranks}, or give "
            "use_cpu: true, bf16: false and accelerate_configs/cpu.yaml"
        )
    if (
        not num_gpus and num_ranks > 1 and arguments.ddp_backend is None
    ):  # a backend that is named is meant for it
        raise FoundryError(
            f"launch: {started}no GPU, where each would train by itself; give use_cpu: true and "
            "accelerate_configs/cpu_ddp.yaml"
        )
    if num_gpus and wants_bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise FoundryError(f"bf16: {torch.cuda.get_device_name(0)} does not compute in it; give bf16: false")


def refuse_passed_over(settings: Any, arguments: Any) -> None:
    """Raise FoundryError for a key of SFT's and DPO's own that its company makes meaningless."""
    if settings.eval_file is not None and arguments.eval_strategy == "no" and arguments.process_index == 0:
        console.print("eval_file: not read, as eval_strategy is no")
    if settings.lora_rank and getattr(arguments, "sync_ref_model", False):
        raise FoundryError(
            "sync_ref_model: not with lora_rank, whose reference is the base itself; leave out one of the two"
        )
    if not settings.lora_rank and settings.lora_alpha != 16:
        raise FoundryError("lora_alpha: passed over without lora_rank")
