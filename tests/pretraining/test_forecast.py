"""The forecast of a run is the planner's: the same formulas, asked with what accelerate and the recipe set up."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.utils import DistributedType

from modeling_foundry import FoundryConfig
from modeling_foundry.planning.formulas.hardware import find_gpu
from modeling_foundry.planning.formulas.memory import TrainingSetup, forecast_memory
from modeling_foundry.planning.models.families import architecture_of
from modeling_foundry.planning.options import FitCommand, ModelCommand
from modeling_foundry.planning.reports.fit import fit_report, largest_micro_batch
from modeling_foundry.planning.reports.model import model_report
from modeling_foundry.pretraining.preflight.forecast import (
    Hardware,
    forecast_run,
    hardware_here,
    sharding_of,
    training_setup,
)
from modeling_foundry.settings import FoundryError
from tests.conftest import REPOSITORY

EIGHT_B200 = Hardware("B200", 8, find_gpu("B200"), find_gpu("B200").memory_bytes)
B200_RECIPE = REPOSITORY / "recipes" / "qwen3_1.8b_8xb200" / "pretrain.yaml"
FLAGSHIP = FoundryConfig(loss_chunk_tokens=16384)


def arguments(**changes):
    values = {
        "per_device_train_batch_size": 32, "gradient_accumulation_steps": 8, "max_steps": 25_000, "bf16": True,
        "fp16": False, "float8": False, "torch_compile": False, "compile_layers": True, "optimizer": "adamw",
    }  # fmt: skip
    return SimpleNamespace(**(values | changes))


def forecast(hardware, sharding="zero1", **changes):
    return forecast_run(FLAGSHIP, arguments(**changes), 2048, hardware, sharding, torch.float32)


def test_it_is_what_the_planner_says_of_the_recipe():
    command = ModelCommand(model=str(B200_RECIPE), gpu="B200", num_gpus=8)
    report = model_report(command)
    ours = forecast(EIGHT_B200)
    assert ours.memory.peak == report["memory"]["peak_bytes"]
    assert (
        ours.memory.device_bytes
        == report["memory"]["peak_bytes"] + report["memory"]["outside_allocator_bytes"]
    )
    for name in (
        "mfu",
        "tokens_per_second",
        "step_seconds",
        "hours",
        "mfu_source",
    ):
        assert getattr(ours.rate, name) == report["training"][name], name
    assert ours.setup.tokens * ours.setup.accumulation * 8 == report["training"]["tokens_per_step"]


def test_the_recipe_of_8_b200_has_the_planners_micro_batch():
    """4,194,304 tokens a step; the largest divisor of 256 sequences a rank that fits with 5% free."""
    content = yaml.safe_load(B200_RECIPE.read_text())
    micro, passes = content["per_device_train_batch_size"], content["gradient_accumulation_steps"]
    assert micro * passes * 8 * content["sequence_length"] == 4_194_304
    report = fit_report(
        FitCommand(model=str(B200_RECIPE), gpu="B200", num_gpus=8, global_batch_tokens="4194304")
    )
    (zero1,) = [row for row in report["ways"] if row["sharding"] == "zero1" and not row["checkpointing"]]
    assert micro == max(size for size in range(1, zero1["micro_batch"] + 1) if (micro * passes) % size == 0)
    launcher = yaml.safe_load((REPOSITORY / "accelerate_configs/zero1_8xb200.yaml").read_text())
    assert launcher["num_processes"] == content["expected_processes"] == 8
    assert launcher["deepspeed_config"]["zero_stage"] == 1


@pytest.mark.parametrize(
    ("changes", "sharding", "expected"),
    [
        ({}, "zero1", {"precision": "bf16_mixed", "execution": "compiled_layers", "optimizer": "adamw"}),
        ({"bf16": False}, "ddp", {"precision": "fp32"}),
        ({"bf16": False, "fp16": True}, "ddp", {"precision": "bf16_mixed"}),
        ({"float8": True}, "zero1", {"precision": "fp8"}),
        ({"float8": True}, "ddp", {"precision": "bf16_mixed"}),
        ({"compile_layers": False}, "none", {"execution": "eager"}),
        ({"torch_compile": True}, "none", {"execution": "compiled"}),
        ({"gradient_checkpointing": True}, "none", {"checkpointing": True}),
        ({"activation_checkpointing": True}, "fsdp2", {"checkpointing": True, "sharding": "fsdp2"}),
        ({"optimizer": "muon"}, "ddp", {"optimizer": "muon"}),
    ],
)  # fmt: skip
def test_a_recipe_in_the_planners_words(changes, sharding, expected):
    setup = training_setup(FLAGSHIP, arguments(**changes), 2048, 4, sharding, torch.float32)
    assert {name: getattr(setup, name) for name in expected} == expected
    assert (setup.micro_batch, setup.accumulation, setup.num_ranks, setup.loss_chunk_tokens) == (
        32,
        8,
        4,
        16384,
    )


def test_parameters_in_bf16_have_no_masters():
    assert training_setup(FLAGSHIP, arguments(), 2048, 1, "none", torch.bfloat16).precision == "bf16"
    for sharding in ("zero1", "fsdp2"):  # which have float32 masters all the same
        setup = training_setup(FLAGSHIP, arguments(), 2048, 1, sharding, torch.bfloat16)
        assert setup.precision == "bf16_mixed"


@pytest.mark.parametrize(
    ("kind", "stage", "expected"),
    [
        (DistributedType.NO, None, "none"), (DistributedType.MULTI_CPU, None, "ddp"),
        (DistributedType.MULTI_GPU, None, "ddp"), (DistributedType.FSDP, None, "fsdp2"),
        (DistributedType.DEEPSPEED, 0, "ddp"), (DistributedType.DEEPSPEED, 1, "zero1"),
        (DistributedType.DEEPSPEED, 3, "zero3"),
    ],
)  # fmt: skip
def test_the_back_end_is_accelerates(kind, stage, expected):
    state = SimpleNamespace(distributed_type=kind, deepspeed_plugin=SimpleNamespace(zero_stage=stage))
    assert sharding_of(state) == expected


def test_a_back_end_without_formula_is_refused():
    with pytest.raises(FoundryError, match="distributed_type XLA has no forecast"):
        sharding_of(SimpleNamespace(distributed_type=DistributedType.XLA))


def test_a_cpu_gets_no_forecast_but_knows_its_checkpoints():
    ours = forecast(hardware_here(torch.device("cpu"), 1), "none", bf16=False)
    assert ours.memory is None
    assert ours.rate == "a CPU has no dense peak in the planner's table"
    assert ours.fits
    assert ours.checkpoint_bytes == 12 * 1_830_395_904  # fp32 weights and two moments
    assert ours.weights_bytes == 4 * 1_830_395_904


def test_an_unknown_card_gets_memory_and_no_rate():
    ours = forecast(Hardware("Some Card", 8, None, 80 * 2**30))
    assert ours.memory is not None
    assert not ours.fits
    assert ours.rate == "Some Card has no dense peak in the planner's table"


def test_fp8_and_fp32_get_no_rate():
    for changes in ({"float8": True}, {"bf16": False}):
        words = forecast(EIGHT_B200, **changes).rate
        assert words.startswith("typical MFUs are of bf16 training, not fp")
        assert "--" not in words


@pytest.mark.parametrize(
    ("sharding", "per_parameter"), [("ddp", 12), ("zero1", 14), ("fsdp2", 12), ("none", 12)]
)
def test_a_checkpoint_holds_the_state_of_all_ranks(sharding, per_parameter):
    """DeepSpeed keeps bf16 weights, fp32 masters and two moments; the others fp32 weights and two moments."""
    ours = forecast(Hardware("CPU", 8), sharding)
    assert ours.checkpoint_bytes == per_parameter * 1_830_395_904


def test_the_largest_micro_batch_is_the_planners():
    ours = forecast(EIGHT_B200, per_device_train_batch_size=64)
    assert not ours.fits
    setup = dataclasses.replace(ours.setup)
    assert isinstance(setup, TrainingSetup)
    architecture = architecture_of(FLAGSHIP.to_dict())
    largest = ours.largest_micro_batch
    assert largest == largest_micro_batch(architecture, setup, ours.hardware.memory_bytes)
    sizes = [
        forecast_memory(architecture, dataclasses.replace(setup, micro_batch=size)).device_bytes
        for size in (largest, largest + 1)
    ]
    assert sizes[0] <= ours.hardware.memory_bytes < sizes[1]
