"""Every check before the first step, made to fail; and that they are shown together, with exit code 2."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from modeling_foundry.planning.formulas.hardware import find_gpu
from modeling_foundry.pretraining.preflight import checks as checks
from modeling_foundry.pretraining.preflight import preflight as preflight_module
from modeling_foundry.pretraining.preflight.forecast import Hardware, forecast_run
from modeling_foundry.pretraining.preflight.preflight import PreflightError, preflight
from modeling_foundry.settings import FoundryError
from tests import warm_start
from tests.conftest import REPOSITORY
from tests.training.small_run import train

Usage = namedtuple("Usage", "total used free")


def forecast_of(trainer, memory_bytes=None, **more):
    gpu = find_gpu("H200") if memory_bytes else None
    hardware = Hardware("H200" if gpu else "CPU", 1, gpu, memory_bytes)
    return forecast_run(
        trainer.model.config, trainer.args, 32, hardware, more.get("sharding", "none"), torch.float32
    )


def run(trainer, forecast=None, launch=lambda: "as asked"):
    return preflight(trainer, trainer.prepared, trainer.asked, forecast or forecast_of(trainer), launch)


def refusal(check, *arguments) -> str:
    with pytest.raises(FoundryError) as error:
        check(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def fake_header(trainer, **changes):
    """The training data as it would be with another header."""
    prepared = trainer.prepared
    (name, shard), *_ = prepared.train.items()

    class Source:
        header = dataclasses.replace(shard.header, **changes)

    return dataclasses.replace(prepared, train={name: Source()})


def test_all_pass_on_a_run_that_is_right(build_trainer):
    findings = run(build_trainer())
    assert [each.check for each in findings] == [
        "launch", "embedding rows", "parameter dtype", "data", "tokenizer", "model", "memory", "disk space",
        "output folder",
    ]  # fmt: skip
    assert {each.verdict for each in findings} == {"passed"}


def test_embedding_rows(build_trainer):
    trainer = build_trainer()
    assert "384 for 320 ids" in checks.check_rows(trainer.model, trainer.processing_class, trainer.prepared)
    words = refusal(
        checks.check_rows, trainer.model, trainer.processing_class, fake_header(trainer, vocab_size=385)
    )
    assert words.startswith("vocab_size: 384 rows cannot hold the 385 ids of ")
    assert "give as many" in words
    trainer.processing_class.add_tokens([f"<extra{index}>" for index in range(65)])
    assert "the 385 ids of the tokenizer" in refusal(
        checks.check_rows, trainer.model, trainer.processing_class, trainer.prepared
    )


def test_parameter_dtype(build_trainer):
    trainer = build_trainer()
    trainer.model.model.norm.to(torch.bfloat16)
    words = refusal(checks.check_dtype, trainer.model, trainer.asked)
    assert words == "model_dtype: float32 was asked for, but model.norm.weight is bfloat16"


def test_altered_data_is_refused_when_it_is_opened(small_data, tmp_path):
    """What the preflight calls verified: one byte of the tokens differs."""
    folder = tmp_path / "data"
    shutil.copytree(small_data, folder)
    tokens = bytearray((folder / "train.ds").read_bytes())
    tokens[10] ^= 1
    (folder / "train.ds").write_bytes(tokens)
    from modeling_foundry.data.sequences.training_data import open_training_data

    assert "train.ds: differs from what data.json recorded" in refusal(open_training_data, folder)


def test_tokenizer_is_the_datas(build_trainer):
    trainer = build_trainer()
    given = trainer.processing_class, trainer.model.config
    assert "the data's" in checks.check_tokenizer(*given, trainer.prepared)
    words = refusal(checks.check_tokenizer, *given, fake_header(trainer, tokenizer_sha256="0" * 64))
    assert "tokenizer.json: not the tokenizer that made the tokens of" in words
    trainer.model.config.eos_token_id = 5
    right = trainer.processing_class.eos_token_id
    words = refusal(checks.check_tokenizer, *given, trainer.prepared)
    assert words.startswith("eos_token_id: 5 in the model, but documents in")
    assert words.endswith(f"end with {right}")


def test_a_tokenizer_that_autotokenizer_made_anew_is_not_the_datas(build_trainer, tmp_path):
    """The file is that of the data; its class, here GPT-2's, took the vocabulary and another pattern."""
    from transformers import AutoTokenizer

    trainer = build_trainer()
    folder = tmp_path / "tokenizer"
    shutil.copytree(trainer.prepared.tokenizer_folder, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "GPT2Tokenizer"}))
    prepared = dataclasses.replace(trainer.prepared, tokenizer_folder=folder)
    words = refusal(
        checks.check_tokenizer, AutoTokenizer.from_pretrained(folder), trainer.model.config, prepared
    )
    assert words.startswith(f"{path}: tokenizer_class: GPT2Tokenizer splits '12345' into")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_key_value_heads", 2), ("qk_norm", False), ("rope_theta", 500.0), ("attention_dropout", 0.0),
     ("attention_backend", "eager"), ("hidden_act", "relu"), ("vocab_size", 512)],
)  # fmt: skip
def test_the_model_is_what_the_recipe_says(build_trainer, key, value):
    """The earlier system's flagship was configured with 8 key-value heads and trained with 16."""
    trainer = build_trainer()
    asked = dataclasses.replace(trainer.asked, **{key: value})
    words = refusal(checks.check_model, trainer.model, asked, forecast_of(trainer))
    assert words.startswith(f"{key}: the recipe says {value if key != 'attention_backend' else 'eager'}, ")


def test_the_planner_counts_the_same_parameters(build_trainer):
    trainer = build_trainer()
    forecast = forecast_of(trainer)
    other = dataclasses.replace(
        forecast, architecture=dataclasses.replace(forecast.architecture, vocab_size=512)
    )
    assert "but the planner counts" in refusal(checks.check_model, trainer.model, trainer.asked, other)


def test_memory_names_the_micro_batch_that_fits(build_trainer):
    trainer = build_trainer(per_device_train_batch_size=4096)
    plenty = forecast_of(trainer, 10**12)
    needed = plenty.memory.device_bytes
    assert "forecast" in checks.check_memory(plenty, "refuse")
    tight = forecast_of(trainer, needed - 1)
    words = refusal(checks.check_memory, tight, "refuse")
    assert words.startswith("per_device_train_batch_size: 4096 x 32 tokens need ")
    assert words.endswith("would fit, or preflight_memory: warn")
    largest = int(words.split("; ")[1].split()[0])
    assert 0 < largest < 4096
    fits = [
        forecast_of(build_trainer(per_device_train_batch_size=size, gradient_accumulation_steps=2), needed - 1).fits
        for size in (largest, largest + 1)
    ]  # fmt: skip
    assert fits == [True, False]
    warned = checks.check_memory(tight, "warn")
    assert warned.verdict == "warning"
    assert "not even 1 would fit" in refusal(checks.check_memory, forecast_of(trainer, 1), "refuse")


def test_disk_space_counts_the_checkpoints_to_come(build_trainer, monkeypatch):
    trainer = build_trainer(save_strategy="steps", save_steps=1, max_steps=9, keep_checkpoints=3)
    forecast = forecast_of(trainer)
    needed = 4 * forecast.checkpoint_bytes + forecast.weights_bytes
    for free, is_enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(10**12, 0, free))
        if is_enough:
            assert "4 checkpoints of" in checks.check_disk(trainer.args, forecast)
        else:
            words = refusal(checks.check_disk, trainer.args, forecast)
            assert "4 checkpoints of" in words
            assert "keep_checkpoints (3)" in words
    for number in (1, 2):  # two of them are there already
        folder = Path(trainer.args.output_dir) / f"checkpoint-{number}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert "2 checkpoints of" in checks.check_disk(trainer.args, forecast)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [({"save_strategy": "no"}, 0), ({"save_strategy": "steps", "save_steps": 4}, 1),
     ({"save_strategy": "steps", "save_steps": 3}, 2), ({"save_strategy": "steps", "save_steps": 1}, 3),
     ({"save_strategy": "steps", "save_steps": 0.5}, 2)],
)  # fmt: skip
def test_checkpoints_at_the_fullest_moment(build_trainer, keys, expected):
    assert checks.checkpoints_at_once(build_trainer(**keys).args) == expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_as_large_as_forecast(build_trainer, optimizer):
    """Of a size where weights and optimizer state outweigh the tokenizer and the JSON files."""
    from modeling_foundry.training.checkpoints.parts import checkpoint_parts

    trainer = build_trainer(optimizer=optimizer, max_steps=1)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-1"
    trainer.model.save_pretrained(folder)
    for part in checkpoint_parts(trainer):
        part.save(folder)
    written = sum(
        tensor.numel() * tensor.element_size()
        for path in folder.glob("*.safetensors")
        if not path.name.startswith("random_state")
        for tensor in load(path).values()
    )
    assert written == pytest.approx(forecast_of(trainer).checkpoint_bytes, rel=0.01)


def load(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_output_folder(tmp_path, monkeypatch):
    assert "can be written to" in checks.check_folder(tmp_path / "new" / "run")
    assert list((tmp_path / "new" / "run").iterdir()) == []
    (tmp_path / "file").write_text("")
    words = refusal(checks.check_folder, tmp_path / "file" / "run")
    assert (
        words
        == f"output_dir: {tmp_path}/file/run cannot be written to (Not a directory); give a folder that can"
    )

    def full(**kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(checks.tempfile, "TemporaryFile", full)
    assert "(Read-only file system)" in refusal(checks.check_folder, tmp_path)


def test_a_step_that_runs_out_of_memory_gets_the_planners_advice(build_trainer):
    trainer = build_trainer(per_device_train_batch_size=2)
    words = checks.out_of_memory_advice(forecast_of(trainer))
    assert words == (
        "per_device_train_batch_size: 2 x 32 tokens ran out of memory; give fewer, or gradient_checkpointing: true, "
        "or fewer loss_chunk_tokens"
    )
    large = build_trainer(per_device_train_batch_size=10**6, gradient_checkpointing=True)
    forecast = forecast_of(large, 4 * 2**30)
    words = checks.out_of_memory_advice(forecast)
    assert (
        f"; give {forecast.largest_micro_batch}, the planner's largest, or fewer loss_chunk_tokens" in words
    )


def test_the_first_step_that_does_not_fit_ends_the_run_in_one_line(small_data, tmp_path, monkeypatch):
    def too_much(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("modeling_foundry.pretraining.pipeline.PretrainTrainer.training_step", too_much)
    with pytest.raises(FoundryError, match="4 x 32 tokens ran out of memory; give fewer") as error:
        train(tmp_path, small_data)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_an_evaluation_that_does_not_fit_names_its_own_batch(small_data, tmp_path, monkeypatch):
    def too_much(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("modeling_foundry.pretraining.pipeline.PretrainTrainer.prediction_step", too_much)
    with pytest.raises(
        FoundryError, match="^per_device_eval_batch_size: 8 ran out of memory in an evaluation"
    ):
        train(tmp_path, small_data, eval_strategy="steps", eval_steps=2)


def test_all_failing_checks_are_shown_together(build_trainer, monkeypatch, capsys):
    trainer = build_trainer()
    trainer.model.model.norm.to(torch.bfloat16)
    trainer.asked = dataclasses.replace(trainer.asked, qk_norm=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10))
    with pytest.raises(PreflightError) as error:
        run(trainer, forecast_of(trainer, 1))
    assert error.value.exit_code == 2
    assert error.value.is_said
    first, *lines = capsys.readouterr().err.splitlines()
    assert first == "error: preflight: 4 of 9 checks failed; nothing was trained"
    assert [line.split(":")[0].strip() for line in lines] == [
        "model_dtype", "qk_norm", "per_device_train_batch_size", "output_dir",
    ]  # fmt: skip


def test_what_only_another_rank_found_is_shown_with_its_number(monkeypatch):
    well = [checks.Finding("memory", "enough")]
    ill = [checks.Finding("memory", "too little", "failed")]
    monkeypatch.setattr(preflight_module, "gather_object", lambda mine: [(0, well), (1, ill), (2, well)])
    everything = preflight_module._of_all_ranks(well, 0)
    assert everything == [*well, checks.Finding("memory", "rank 1: too little", "failed")]


# ------------------------------------------------------------------------------------------ as a program


def recipe(*settings: str) -> subprocess.CompletedProcess:
    return warm_start.run([sys.executable, "recipes/pretrain.py", *settings], cwd=REPOSITORY)


def small(small_data, out, *more):
    return [
        "--config", "recipes/shakespeare/pretrain.yaml", f"--data_dir={small_data}", f"--output_dir={out}",
        "--hidden_size=32", "--intermediate_size=64", "--num_hidden_layers=1", "--num_attention_heads=2",
        "--num_key_value_heads=1", "--head_dim=16", "--sequence_length=32", "--max_eval_sequences=4",
        *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_preflight_only_trains_nothing(small_data, tmp_path):
    done = recipe(*small(small_data, tmp_path / "run", "--max_steps=2", "--preflight_only=true"))
    assert done.returncode == 0, done.stderr
    assert "9 of 9 checks passed" in done.stdout
    assert "the first 32 tokens of the run" in done.stdout
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.lock", "heartbeats"}


@pytest.mark.slow
def test_failing_checks_end_the_recipe_with_2(small_data, tmp_path):
    """Expected ranks and the disk: two keys, two lines, and a run folder without a record."""
    more = [
        "--expected_processes=4",
        "--keep_checkpoints=900000000000",
        "--save_steps=1",
        "--max_steps=900000000000",
    ]
    done = recipe(*small(small_data, tmp_path / "run", *more))
    assert done.returncode == 2
    assert "2 of 9 checks failed; nothing was trained" in done.stderr
    assert "expected_processes is 4 but 1 process(es) train" in done.stderr
    assert "lower keep_checkpoints (900000000000)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
def test_two_ranks_say_it_once(small_data, tmp_path, launch):
    given = small(small_data, tmp_path / "run", "--keep_checkpoints=900000000000", "--save_steps=1")
    failed = launch("pretrain", *given, "--max_steps=900000000000", ranks=2, check=False)
    assert failed.returncode != 0
    assert (failed.stdout + failed.stderr).count("checks failed; nothing was trained") == 1
    passed = launch("pretrain", *small(small_data, tmp_path / "run", "--max_steps=2"), ranks=2)
    assert passed.stdout.count("preflight: 9 of 9 checks passed") == 1
    assert "tokens of the run, a colour a document" not in passed.stdout, "with preflight_only alone"
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_an_output_folder_that_cannot_be_is_one_line(small_data, tmp_path):
    (tmp_path / "file").write_text("")
    done = recipe(*small(small_data, tmp_path / "file" / "run", "--max_steps=2"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: output_dir: ")


def test_neutral_keys_do_not_make_another_run():
    from modeling_foundry.pretraining.settings import PretrainArguments
    from modeling_foundry.settings import neutral_settings
    from modeling_foundry.training.safety.update_guard import GuardKeys

    keys = {*preflight_module.PreflightKeys.__dataclass_fields__, *GuardKeys.__dataclass_fields__}
    neutral = neutral_settings(PretrainArguments)
    assert keys | {"profile_step", "overwrite", "keep_checkpoints", "save_initial_model"} <= neutral
    assert not neutral & {"learning_rate", "max_steps", "optimizer", "float8", "seed", "extend_run"}
