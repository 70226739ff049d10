"""The banner: counted numbers, forecasts called so, 100 columns, plain text in a file."""

import io
import re

import pytest
import torch
from rich.console import Console

from modeling_foundry.planning.formulas.hardware import find_gpu
from modeling_foundry.planning.formulas.parameters import count_parameters
from modeling_foundry.planning.models.families import architecture_of
from modeling_foundry.pretraining.preflight.banner import banner_rows, print_rows
from modeling_foundry.pretraining.preflight.forecast import Hardware, forecast_run


def gpus(num, name):
    gpu = find_gpu(name)
    return Hardware(gpu.name, num, gpu, gpu.memory_bytes)


def rows_of(trainer, hardware, sharding="none", plan=None):
    forecast = forecast_run(trainer.model.config, trainer.args, 32, hardware, sharding, torch.float32)
    return dict(banner_rows(trainer.model, forecast, plan or trainer.plan, "sdpa", 1_024))


def test_on_a_cpu(build_trainer):
    trainer = build_trainer(gradient_accumulation_steps=2)
    rows = rows_of(trainer, Hardware("CPU", 1))
    counted = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert rows["parameters"] == f"{counted:,}, counted in the model, the planner's count too"
    assert rows["batch"] == "4 sequences x 2 accumulation x 1 rank x 32 tokens = 256 tokens a step"
    assert rows["run"] == "4 steps = 1,024 tokens; 1 epochs of 1,024"
    assert rows["schedule"] == "cosine_with_min_lr, highest rate 5e-05, 0 steps of warm-up"
    assert rows["hardware"] == "CPU, 1 rank"
    assert rows_of(trainer, Hardware("CPU", 2), "ddp")["hardware"] == "CPU, 2 ranks, DDP"
    assert rows["forecast"] == "no speed and no time: a CPU has no dense peak in the planner's table"
    assert not [name for name in rows if name.startswith("forecast ")]


def test_on_gpus_every_expectation_is_called_a_forecast(build_trainer):
    trainer = build_trainer(bf16=True)
    rows = rows_of(trainer, gpus(8, "H200"), "zero1")
    assert rows["hardware"] == "8 x H200, ZeRO-1"
    assert rows["dense peak"] == "989 TFLOP/s bf16 a GPU, without sparsity, 7.91 PFLOP/s in all"
    assert rows["compute"].startswith(
        "parameters bfloat16, masters float32, compute bfloat16, attention sdpa"
    )
    expected = {
        name for name, words in rows.items() if "MFU" in name or "tokens/s" in words or "GiB" in words
    }
    assert expected == {"forecast memory", "forecast MFU", "forecast speed"}
    assert "forecast time" in rows


def test_memory_of_fp8_is_said_to_be_counted_as_bf16_where_it_is(build_trainer):
    trainer = build_trainer(bf16=True)
    trainer.plan.arguments.float8 = trainer.args.float8 = True
    for sharding, is_said in (("ddp", True), ("zero1", False)):
        rows = rows_of(trainer, gpus(8, "H200"), sharding)
        assert ("counted as bf16: fp8 takes less" in rows["forecast memory"]) == is_said


def test_a_model_that_is_not_as_planned_is_said(build_trainer):
    trainer = build_trainer()
    trainer.model.extra = torch.nn.Parameter(torch.zeros(7))
    planned = count_parameters(architecture_of(trainer.model.config.to_dict())).total
    words = rows_of(trainer, Hardware("CPU", 1))["parameters"]
    assert words == f"{planned + 7:,}, counted in the model, but the planner counts {planned:,}"


def test_memory_that_is_not_there_is_said(build_trainer):
    rows = rows_of(build_trainer(), Hardware("Some Card", 1, None, 1))
    assert "does not fit, 0 sequences would" in rows["forecast memory"]
    assert rows["dense peak"] == "not known"


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_it_fits_and_is_plain_in_a_file(build_trainer, width, is_terminal):
    rows = rows_of(build_trainer(bf16=True), gpus(8, "B200"), "zero1")
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=is_terminal, color_system=None, highlight=False)
    print_rows("pretrain runs/[bold]x", list(rows.items()), console)
    lines = file.getvalue().splitlines()
    if not is_terminal:
        assert "\x1b" not in file.getvalue()
        assert all(line == line.rstrip() for line in lines)
        assert max(map(len, lines)) > 60
    bare = [strip_styles(line) for line in lines]
    assert max(map(len, bare)) <= min(100, width if is_terminal else 100)
    words = " ".join(" ".join(bare).split())
    assert all(" ".join(said.split()) in words for said in rows.values())
    assert bare[0] == "pretrain runs/[bold]x"


def strip_styles(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line)
