"""A launcher that fell back silently does not train."""

import json
from types import SimpleNamespace

import pytest
import torch

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.log.log_file import read_log
from modeling_foundry.training.precision import Precision
from modeling_foundry.training.processes.launch import assert_launched_as_asked, launch_words
from tests.training.small_run import train


def state(kind="NO", processes=1, device="cpu", **more):
    return SimpleNamespace(
        distributed_type=f"DistributedType.{kind}", num_processes=processes, device=device, **more
    )


def test_what_was_asked_for_passes_and_is_said():
    line = assert_launched_as_asked(state("MULTI_CPU", 2), "no", 2, {"WORLD_SIZE": "2"})
    assert line == "MULTI_CPU, 2 process(es), mixed precision no, cpu"


ZERO = {"deepspeed_plugin": SimpleNamespace(zero_stage=1)}
FLOAT32 = Precision(torch.float32, torch.float32, "float32")


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (state(), "1 process on the CPU"),
        (state(device="cuda:0"), "1 process on cuda:0"),
        (state("DEEPSPEED", 1, **ZERO), "1 process on the CPU, ZeRO-1"),
        (state("MULTI_CPU", 2), "2 processes on the CPU, DDP"),
        (state("MULTI_GPU", 2, "cuda:0"), "2 processes, DDP, rank 0 on cuda:0"),
        (state("FSDP", 2, is_fsdp2=True), "2 processes on the CPU, FSDP2"),
        (state("DEEPSPEED", 2, **ZERO), "2 processes on the CPU, ZeRO-1"),
        (state("MULTI_XPU", 2, "xpu:0"), "2 processes, MULTI_XPU, rank 0 on xpu:0"),
    ],
)
def test_a_launch_in_words(now, words):
    expected = f"{words}; parameters float32, masters float32, compute float32"
    assert launch_words(now, FLOAT32) == expected


@pytest.mark.parametrize(
    ("now", "expected", "environment", "message"),
    [
        (state(), None, {"WORLD_SIZE": "2"}, "2 processes were started but 1 train together"),
        (state(), 2, {}, "expected_processes is 2 but 1"),
        (
            state("MULTI_CPU", 2),
            None,
            {"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"},
            "DEEPSPEED was",
        ),
        (
            state("MULTI_GPU", 2),
            None,
            {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"},
            "FSDP was asked for",
        ),
        (state(), None, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "asks for mixed_precision bf16"),
    ],
)
def test_a_silent_fallback_is_refused(now, expected, environment, message):
    with pytest.raises(FoundryError, match=message):
        assert_launched_as_asked(now, "no", expected, environment)


def test_a_start_says_it_in_words_and_records_it_in_accelerates_names(small_data, tmp_path, capsys):
    train(tmp_path / "run", small_data, max_steps=1)
    dtypes = "parameters float32, masters float32, compute float32"
    assert f"pretrain: from the start; 1 process on the CPU; {dtypes}\n" in capsys.readouterr().out
    recorded = "NO, 1 process(es), mixed precision no, cpu"
    assert json.loads((tmp_path / "run/run.json").read_text())["launch"] == recorded
    assert next(line["launch"] for line in read_log(tmp_path / "run") if "launch" in line) == recorded
