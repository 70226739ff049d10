"""A tiny model with a chat tokenizer and a few samples, and a way to launch a recipe on one or two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm_start
from tests.conftest import REPOSITORY

WORDS = (
    "add list of items return the sum first value string path open file read write close number map key"
).split()
ENGINES = {
    "zero1": ["--use_deepspeed", "--zero_stage=1"],
    "fsdp2": [
        "--use_fsdp", "--fsdp_version=2", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP",
        "--fsdp_transformer_layer_cls_to_wrap=FoundryDecoderLayer", "--fsdp_state_dict_type=FULL_STATE_DICT",
    ],
}  # fmt: skip
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


def summary(index: int) -> str:
    return " ".join(WORDS[(index * step + step) % len(WORDS)] for step in range(3, 8))


@pytest.fixture(scope="session")
def samples(tmp_path_factory) -> Path:
    """Folder with sft.jsonl and dpo.jsonl, 32 samples each."""
    folder = tmp_path_factory.mktemp("samples")
    with open(folder / "sft.jsonl", "w") as sft, open(folder / "dpo.jsonl", "w") as dpo:
        for index in range(32):
            user = [{"role": "user", "content": f"def {WORDS[index % 18]}_{WORDS[index % 7]}(x):"}]
            good = [{"role": "assistant", "content": summary(index)}]
            bad = [{"role": "assistant", "content": summary(index + 5)}]
            sft.write(json.dumps({"messages": user + good, "function": "f"}) + "\n")
            dpo.write(json.dumps({"prompt": user, "chosen": good, "rejected": bad, "module": "m"}) + "\n")
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from modeling_foundry.data.tokenizer.training import train_tokenizer

    return train_tokenizer(
        [f"def {word}(x): {summary(i)}" for i, word in enumerate(WORDS)] * 4, vocab_size=384
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tokenizer) -> Path:
    """A freshly initialised two-layer model with its tokenizer."""
    import torch

    from modeling_foundry import FoundryConfig, FoundryForCausalLM

    torch.manual_seed(0)
    config = FoundryConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, tie_word_embeddings=True,
        loss_chunk_tokens=64, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "model"
    FoundryForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def launch_command(script: Path, *settings: str, ranks: int = 1, engine: str = "ddp") -> list[str]:
    """``accelerate launch`` of a script on CPU ranks; DeepSpeed (``zero1``) and ``fsdp2`` start without use_cpu."""
    topology = REPOSITORY / "accelerate_configs" / ("cpu.yaml" if ranks == 1 else "cpu_ddp.yaml")
    command = [*ACCELERATE, "--config_file", str(topology), f"--num_processes={ranks}"]
    if engine != "ddp":
        command = [*ACCELERATE, *ENGINES[engine], f"--num_processes={ranks}"]
        command += ["--num_machines=1", "--mixed_precision=no"]
        settings = (*settings, "--ddp_backend=gloo", "--use_cpu=false", "--bf16=false")
    if ranks > 1:  # a free port: two tests may run at once
        command += ["--main_process_port", "0"]
    return [*command, str(script), *settings]


def launch_environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **more}


@pytest.fixture
def launch():
    """Run ``recipes/<stage>.py`` under accelerate on one or two CPU ranks; returns the finished process."""

    def run(
        stage: str, *settings: str, ranks: int = 1, check: bool = True, engine: str = "ddp",
        script: Path | None = None, **environment: str,
    ) -> subprocess.CompletedProcess:  # fmt: skip
        script = script or REPOSITORY / "recipes" / f"{stage}.py"
        command = launch_command(script, *settings, ranks=ranks, engine=engine)
        finished = warm_start.run(command, cwd=REPOSITORY, env=launch_environment(**environment))
        if check:
            assert finished.returncode == 0, f"{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
        return finished

    return run


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    """A data folder of 320 ids, prepared once; to be read only."""
    from tests.training.small_run import prepare_data

    return prepare_data(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture
def build_trainer(small_data, tmp_path):
    """A pretraining trainer of a two-layer model with dropout, built as the recipe builds it."""
    from transformers import AutoTokenizer, set_seed

    from modeling_foundry.data.sequences.training_data import open_training_data
    from modeling_foundry.pretraining import pipeline as pretraining
    from modeling_foundry.pretraining.model_settings import ModelSettings
    from modeling_foundry.pretraining.token_budget import resolve_plan

    def build(**more):
        settings = ModelSettings(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, tie_word_embeddings=True, loss_chunk_tokens=64,
            attention_dropout=0.1,
        )  # fmt: skip
        data = pretraining.PretrainDataSettings(data_dir=str(small_data), sequence_length=32)
        given = {
            "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4, "max_steps": 4,
            "use_cpu": True, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 7,
        }  # fmt: skip
        arguments = pretraining.PretrainArguments(**(given | more))
        prepared = open_training_data(small_data)
        tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
        set_seed(arguments.seed)
        model = pretraining.new_model(settings, data, tokenizer)
        plan = resolve_plan(arguments, data.sequence_length)
        trainer = pretraining.pretrain_trainer(model, tokenizer, prepared, data, plan)
        # What the banner says and the preflight compares with.
        trainer.prepared, trainer.asked, trainer.plan = prepared, settings, plan
        return trainer

    return build


@pytest.fixture(scope="session")
def uneven(samples, tmp_path_factory) -> Path:
    """The samples with answers of one to five sentences, so that means of means show."""
    folder = tmp_path_factory.mktemp("uneven")
    for stage, names in (("sft", ["messages"]), ("dpo", ["chosen", "rejected"])):
        rows = [json.loads(line) for line in (samples / f"{stage}.jsonl").read_text().splitlines()]
        for index, row in enumerate(rows):
            for number, name in enumerate(names):
                answer = row[name][-1]
                answer["content"] = " ".join([answer["content"]] * (1 + (index + number) % 5))
        (folder / f"{stage}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
