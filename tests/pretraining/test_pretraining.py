"""Pretraining as a user runs it: on text, interrupted, resumed, finished, asked again."""

import json
import os
import signal
import subprocess
import sys

import pytest
from safetensors.torch import load_file

from modeling_foundry.training.log.log_file import read_log
from tests import warm_start
from tests.conftest import REPOSITORY, SOURCE_TEXT
from tests.waits import wait_for

SIZES = [
    "--hidden_size=32", "--intermediate_size=64", "--num_hidden_layers=2", "--num_attention_heads=2",
    "--num_key_value_heads=1", "--head_dim=16", "--sequence_length=32", "--text_file_vocab_size=320",
]  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "input.txt"
    path.write_text(SOURCE_TEXT)
    return path


def arguments(text_file, out, *more):
    return [
        "--config", str(REPOSITORY / "recipes/shakespeare/pretrain.yaml"), f"--text_file={text_file}",
        f"--output_dir={out}/pretrain", "--per_device_train_batch_size=4", "--max_eval_sequences=8",
        "--logging_steps=1", *SIZES, *more,
    ]  # fmt: skip


@pytest.mark.slow
def test_the_quick_test_of_the_earlier_system(text_file, tmp_path, launch):
    """Any plain-text file, --max_steps, and then: complete, nothing to do; other settings: refused."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = arguments(text_file, tmp_path, "--max_steps=8", "--eval_steps=4", "--save_steps=4")
    launch("pretrain", *settings)
    lines = read_log(tmp_path / "pretrain")
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    held_out = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert held_out.keys() == {0, 4, 8}
    assert held_out[8] < held_out[0]
    rates = [line for line in lines if "tokens_per_second" in line]
    assert rates[-1]["tokens"] == 8 * 4 * 32
    assert all(line["learning_rate"] >= 0 and line["grad_norm"] > 0 for line in rates)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pretrain" / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "pretrain" / "model")
    assert model.config.use_cache
    assert model.config.vocab_size >= len(tokenizer)
    assert not list((tmp_path / "pretrain" / "model").glob("*.bin"))

    before = (tmp_path / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns
    again = launch("pretrain", *settings)
    assert "complete already" in again.stdout
    assert (tmp_path / "pretrain" / "model" / "model.safetensors").stat().st_mtime_ns == before
    other = warm_start.run(
        [sys.executable, "recipes/pretrain.py", *settings, "--learning_rate=0.5"], cwd=REPOSITORY
    )
    assert other.returncode == 2
    assert "holds a run with other settings (learning_rate: 0.01 -> 0.5)" in other.stderr


@pytest.mark.slow
def test_killed_and_started_again_ends_where_an_uninterrupted_run_ends(text_file, tmp_path, launch):
    """SIGKILL in the middle; the next start goes on, and the weights and losses are bit for bit the same."""
    common = ["--max_steps=40", "--save_steps=5", "--eval_strategy=no", "--attention_dropout=0.1", "--seed=5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    launch("pretrain", *arguments(text_file, whole, *common))

    command = [sys.executable, "recipes/pretrain.py", *arguments(text_file, killed, *common)]
    child = warm_start.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_for((killed / "pretrain" / "checkpoint-10" / "manifest.json").exists, child)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (killed / "pretrain" / "complete.json").exists()
    resumed = launch("pretrain", *arguments(text_file, killed, *common))
    assert "going on from checkpoint-" in resumed.stdout

    first, second = (load_file(run / "pretrain" / "model" / "model.safetensors") for run in (whole, killed))
    assert all((first[name] == second[name]).all() for name in first)

    def losses(run):
        return {line["step"]: line["loss"] for line in read_log(run / "pretrain") if "loss" in line}

    assert losses(whole) == losses(killed)
    assert len(losses(killed)) == 40
    written = [line for line in read_log(killed / "pretrain") if line["event"] in ("train", "checkpoint")]
    events = [(line["step"], line["event"]) for line in written]
    assert [step for step, event in events if event == "train"] == list(range(1, 41))
    assert [step for step, event in events if event == "checkpoint"] == list(range(5, 41, 5))
    seconds = [line["training_seconds"] for line in written if "training_seconds" in line]
    assert seconds == sorted(seconds)  # both parts of the run count on one clock


@pytest.mark.slow
def test_two_ranks_see_what_one_rank_sees(text_file, tmp_path, launch):
    common = ["--max_steps=4", "--save_strategy=no", "--eval_strategy=no", "--learning_rate=0.001"]
    common += ["--gradient_accumulation_steps=2", "--include_num_input_tokens_seen=all"]
    common += [
        "--optimizer=adamw",
        "--lr_scheduler_type=constant",
        "--lr_scheduler_kwargs=null",
        "--warmup_steps=0",
    ]
    launch(
        "pretrain", *arguments(text_file, tmp_path / "one", *common, "--per_device_train_batch_size=4")[:-1]
    )
    two = [word for word in arguments(text_file, tmp_path / "two", *common) if "train_batch_size" not in word]
    launch("pretrain", *two, "--per_device_train_batch_size=2", "--expected_processes=2", ranks=2)
    first, second = (
        [line["loss"] for line in read_log(tmp_path / run / "pretrain") if "loss" in line]
        for run in ("one", "two")
    )
    assert first == pytest.approx(second, abs=1e-4)
    for run in ("one", "two"):  # ours is micro-batch x accumulation x ranks x S; Trainer counted the batches
        for line in read_log(tmp_path / run / "pretrain"):
            if line["event"] == "train":
                assert line["tokens"] == line["num_input_tokens_seen"] == line["step"] * 8 * 32
                assert line["mfu"] is None
                assert line["model_tflops_per_rank"] > 0
                assert 0 < line["data_wait_seconds"] < line["step_seconds"]
                assert len(line["grad_layer_norms"]) == 2
    record = json.loads((tmp_path / "two" / "pretrain" / "run.json").read_text())
    assert record["launch"].startswith("MULTI_CPU, 2 process(es)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--data_dir=elsewhere"], "give exactly one of data_dir, mixture and text_file"),
        (["--num_key_value_heads=3"], "num_key_value_heads"),
        (["--max_steps=-1"], "max_steps: missing; give max_steps or max_tokens"),
        (["--per_device_train_batch_size=0"], "per_device_train_batch_size: expected at least 1, found 0"),
        (["--gradient_accumulation_steps=0"], "gradient_accumulation_steps: expected at least 1, found 0"),
        (["--learning_rate=-1"], "learning_rate: expected at least 0, found -1"),
        (["--adam_beta2=1"], "adam_beta2: expected at least 0 and below 1, found 1"),
        (["--seed=-1"], "seed: expected at least 0 and below 4,294,967,296, found -1"),
        (["--save_steps=0"], "save_steps: expected more than 0, found 0"),
        (["--text_file_vocab_size=10"], "text_file_vocab_size: expected at least 300, found 10"),
        (["--max_eval_sequences=0"], "max_eval_sequences: expected at least 1, found 0"),
        (["--num_train_epochs=2"], "num_train_epochs: pretraining counts steps"),
        (["--resume_from_checkpoint=elsewhere"], "resume_from_checkpoint: leave it out"),
        (["--num_key_value_heads=0"], "num_key_value_heads=0 must be a positive integer"),
        (["--num_attention_heads=0", "--head_dim=null"], "num_attention_heads=0 must be a positive integer"),
        (["--head_dim=0"], "head_dim=0 must be a positive integer"),
        (["--vocab_size=0"], "vocab_size: 0 rows cannot hold"),
        (["--hidden_act=swish"], "hidden_act='swish' is not one of"),
        (["--vocab_size=128"], "cannot hold the tokenizer's"),
        (["--sequence_length=1000000"], "do not fill one sequence"),
        (["--position_encoding=learned", "--rope_theta=10000"], "rope_theta"),
        (
            ["--attention_backend=flash_attn_2"],
            "attention_backend: flash_attn_2 trains on a CUDA device only",
        ),
        (["--attention_backend=cudnn_sdpa"], "attention_backend: cudnn_sdpa trains on a CUDA device only"),
        (["--attention_backend=flex"], "attention_backend: flex trains on a CUDA device only"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(text_file, tmp_path, change, message):
    from modeling_foundry import settings
    from modeling_foundry.pretraining.model_settings import ModelSettings
    from modeling_foundry.pretraining.pipeline import (
        PretrainArguments,
        PretrainDataSettings,
        pretrain,
    )

    keys = {word.split("=")[0] for word in change}
    words = [word for word in arguments(text_file, tmp_path) if word.split("=")[0] not in keys]
    parsed = settings.parse(ModelSettings, PretrainDataSettings, PretrainArguments, argv=[*words, *change])
    with pytest.raises(settings.FoundryError) as error:
        pretrain(*parsed)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_earlier_systems_words_are_understood():
    from modeling_foundry import settings
    from modeling_foundry.model.configuration_foundry import attention_implementation
    from modeling_foundry.pretraining.model_settings import ModelSettings

    words = ["--normalization=rmsnorm", "--position_encoding=rope", "--ffn_type=swiglu"]
    (parsed,) = settings.parse(ModelSettings, argv=[*words, "--attention_backend=flash_attn_2"])
    assert attention_implementation(parsed.attention_backend) == "flash_attention_2"


def test_every_backend_the_recipe_accepts_has_its_implementation():
    from typing import get_args, get_type_hints

    from modeling_foundry.model.configuration_foundry import ATTENTION_BACKENDS
    from modeling_foundry.pretraining.model_settings import ModelSettings

    assert set(get_args(get_type_hints(ModelSettings)["attention_backend"])) == ATTENTION_BACKENDS.keys()


@pytest.mark.slow
def test_another_text_is_refused_and_the_advice_works(text_file, tmp_path, launch):
    """A changed text file: one line, and both ways it names train on the new text."""
    few = ["--max_steps=1", "--save_strategy=no", "--eval_strategy=no"]
    launch("pretrain", *arguments(text_file, tmp_path / "run", *few))
    other = tmp_path / "other.txt"
    other.write_text(text_file.read_text().upper())
    command = [sys.executable, "recipes/pretrain.py", *arguments(other, tmp_path / "run", *few)]
    refused = warm_start.run(command, cwd=REPOSITORY)
    assert refused.returncode == 2
    assert "holds data prepared otherwise (text_file_sha256" in refused.stderr
    assert "give another --output_dir, or --overwrite=true" in refused.stderr

    launch("pretrain", *arguments(other, tmp_path / "elsewhere", *few))
    launch("pretrain", *arguments(other, tmp_path / "run", *few, "--overwrite=true"))
    first, second = (
        [line["loss"] for line in read_log(tmp_path / run / "pretrain") if "loss" in line]
        for run in ("run", "elsewhere")
    )
    assert len(first) == 1
    assert first == second


def test_overwrite_never_removes_what_is_not_a_run(tmp_path):
    from modeling_foundry.settings import FoundryError
    from modeling_foundry.training.run_folder import discard_run

    (tmp_path / "thesis.tex").write_text("years of work")
    discard_run(tmp_path)
    (tmp_path / "model").mkdir()
    with pytest.raises(FoundryError, match="no run of ours"):
        discard_run(tmp_path)
    assert (tmp_path / "thesis.tex").exists()
