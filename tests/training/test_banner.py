"""The banner: counted numbers, forecasts called so, 100 columns, plain text in a file; and the dry run."""

import io
import re
import subprocess
import sys

import pytest
import torch
from rich.console import Console

from modeling_foundry.planning.families import architecture_of
from modeling_foundry.planning.parameters import count_parameters
from modeling_foundry.training.banner import banner_rows, print_rows
from modeling_foundry.training.forecast import Hardware, forecast_run, named_hardware
from tests import warm_start
from tests.conftest import REPOSITORY

B200_RECIPE = "recipes/qwen3_1.8b_8xb200/pretrain.yaml"


def rows_of(trainer, hardware, sharding="none"):
    forecast = forecast_run(trainer.model.config, trainer.args, 32, hardware, sharding, torch.float32)
    return dict(banner_rows(trainer.model, forecast, trainer.args, "sdpa", 1_024))


def test_on_a_cpu(build_trainer):
    trainer = build_trainer(gradient_accumulation_steps=2)
    rows = rows_of(trainer, Hardware("CPU", 1))
    counted = sum(parameter.numel() for parameter in trainer.model.parameters())
    assert rows["parameters"] == f"{counted:,}, counted in the model, the planner's count too"
    assert rows["batch"] == "4 sequences x 2 accumulation x 1 rank x 32 tokens = 256 tokens a step"
    assert rows["run"] == "4 steps = 1,024 tokens; 1 epochs of 1,024"
    assert rows["hardware"] == "CPU, 1 rank"
    assert rows_of(trainer, Hardware("CPU", 2), "ddp")["hardware"] == "CPU, 2 ranks, DDP"
    assert rows["forecast"] == "no speed and no time: a CPU has no dense peak in the planner's table"
    assert not [name for name in rows if name.startswith("forecast ")]


def test_on_gpus_every_expectation_is_called_a_forecast(build_trainer):
    trainer = build_trainer(bf16=True)
    rows = rows_of(trainer, named_hardware("8xH200"), "zero1")
    assert rows["hardware"] == "8 x H200, ZeRO-1: as if, this machine was not asked"
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
    trainer.args.float8 = True
    for sharding, is_said in (("ddp", True), ("zero1", False)):
        rows = rows_of(trainer, named_hardware("8xH200"), sharding)
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
    rows = rows_of(build_trainer(bf16=True), named_hardware("8xB200"), "zero1")
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


def dry_run(*settings: str) -> subprocess.CompletedProcess:
    return warm_start.run([sys.executable, "recipes/pretrain.py", *settings], cwd=REPOSITORY)


@pytest.mark.slow
def test_dry_run_of_8_b200_from_a_cpu(tmp_path):
    """No data, no GPU: the flagship has shapes only, and every expectation is called a forecast."""
    done = dry_run("--config", B200_RECIPE, "--forecast_for=8xB200", f"--output_dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "nothing is trained, nothing was measured" in out
    assert "1,830,395,904, counted in the model, the planner's count too" in out
    assert "32 sequences x 8 accumulation x 8 ranks x 2,048 tokens = 4,194,304 tokens a step" in out
    assert "8 x B200, ZeRO-1: as if, this machine was not asked" in out
    said = {line.split("  ")[1]: line for line in out.splitlines() if line.startswith("  forecast")}
    assert set(said) == {"forecast memory", "forecast MFU", "forecast speed", "forecast time"}
    assert "36.0%" in said["forecast MFU"]
    assert "tokens/s" in said["forecast speed"]
    assert max(map(len, out.splitlines())) <= 100
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_dry_run_refuses_what_does_not_fit(tmp_path):
    given = ["--config", B200_RECIPE, f"--output_dir={tmp_path}/run", "--per_device_train_batch_size=64"]
    done = dry_run(*given, "--forecast_for=8xB200")
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith("error: per_device_train_batch_size: 64 x 2,048 tokens need")
    )
    assert "would fit" in done.stderr
    warned = dry_run(*given, "--forecast_for=8xB200", "--preflight_memory=warn")
    assert warned.returncode == 0
    assert "warning" in warned.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["--forecast_for=8xB300"], "forecast_for: gpu: 'B300' is not in the table; did you mean B200"),
        (
            ["--forecast_for=4xB200"],
            "forecast_for: 4xB200 has 4 rank(s), expected_processes is 8; give the same",
        ),
        (["--forecast_for=8xB200", "--vocab_size=null"], "vocab_size: missing, and "),
    ],
)
def test_a_dry_run_that_cannot_be_is_one_line(settings, words, tmp_path):
    from modeling_foundry.settings import FoundryError, parse
    from modeling_foundry.training.model_settings import ModelSettings
    from modeling_foundry.training.pretraining import PretrainArguments, PretrainDataSettings, pretrain

    argv = ["--config", str(REPOSITORY / B200_RECIPE), f"--output_dir={tmp_path}/run", *settings]
    with pytest.raises(FoundryError) as error:
        pretrain(*parse(ModelSettings, PretrainDataSettings, PretrainArguments, argv=argv))
    assert str(error.value).startswith(words)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.slow
def test_the_page_prints_what_the_dry_run_prints(tmp_path):
    page = (REPOSITORY / "docs" / "pretrain.md").read_text()
    shown = page.split("### Eight B200")[1].split("```console\n")[1].split("```")[0]
    out = dry_run("--config", B200_RECIPE, "--forecast_for=8xB200", f"--output_dir={tmp_path}/run").stdout
    assert shown in out
