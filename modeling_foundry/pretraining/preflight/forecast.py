"""The planner's forecast of one run: memory of a GPU, rate and time.  Every formula is the planner's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import PreTrainedConfig, TrainingArguments

from ...planning.formulas.cost import RateForecast, forecast_rate
from ...planning.formulas.hardware import Gpu, gpu_of_device
from ...planning.formulas.memory import (
    Execution,
    MemoryForecast,
    Precision,
    Sharding,
    TrainingSetup,
    forecast_memory,
)
from ...planning.models.architecture import Architecture
from ...planning.models.families import architecture_of
from ...planning.models.fields import PlanError
from ...planning.reports.fit import largest_micro_batch
from ...settings import FoundryError
from ...training.options.refusals import recomputes
from ...training.precision import engine_of_sharding, has_masters, precision_of

SHARDING_WORDS = {
    "none": "one rank", "ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2",
}  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """What a forecast is made for.

    Args:
        gpu: the planner's entry; None for a CPU and for a card that its table does not hold.
        memory_bytes: what the run may use of one device; None where nothing says (a CPU).
    """

    name: str
    num_ranks: int
    gpu: Gpu | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class RunForecast:
    """What the planner expects of a run; nothing in it was measured.

    Args:
        memory: None on a CPU, whose peak the planner's constants do not describe.
        rate: the planner's, or why there is none.
    """

    architecture: Architecture
    setup: TrainingSetup
    hardware: Hardware
    memory: MemoryForecast | None
    rate: RateForecast | str

    @property
    def fits(self) -> bool:
        """Whether the forecast memory is there, as far as anything is known of it."""
        available = self.hardware.memory_bytes
        return self.memory is None or available is None or self.memory.device_bytes <= available

    @property
    def fits_unsharded(self) -> bool:
        """Whether one device holds a forward and backward pass of the whole model, without optimizer state."""
        available = self.hardware.memory_bytes
        if self.memory is None or available is None:
            return True
        whole = forecast_memory(self.architecture, replace(self.setup, sharding="none", num_ranks=1))
        return whole.device_bytes - whole.persistent["optimizer state"] <= available

    @property
    def largest_micro_batch(self) -> int:
        """Sequences of the largest micro-batch that fits the device; 0 where one does not."""
        # A smaller micro-batch means accumulation, and then gradients outlive a forward pass.
        setup = replace(self.setup, accumulation=max(2, self.setup.accumulation))
        return largest_micro_batch(self.architecture, setup, self.hardware.memory_bytes or 0)

    @property
    def weights_bytes(self) -> int:
        """The model's weights as a checkpoint holds them."""
        return self._whole().persistent["parameters"]

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and optimizer state of all ranks together, as a checkpoint holds them."""
        whole = self._whole()
        return whole.persistent["parameters"] + whole.persistent["optimizer state"]

    def _whole(self) -> MemoryForecast:
        return forecast_memory(self.architecture, replace(self.setup, num_ranks=1))


def forecast_run(
    config: PreTrainedConfig,
    arguments: TrainingArguments,
    sequence_length: int,
    hardware: Hardware,
    sharding: Sharding,
    parameter_dtype: torch.dtype,
) -> RunForecast:
    """Ask the planner about this configuration, batch and back end.

    Raises:
        PlanError: the planner does not know the architecture.
    """
    architecture = architecture_of(config.to_dict())
    setup = training_setup(config, arguments, sequence_length, hardware.num_ranks, sharding, parameter_dtype)
    is_gpu = hardware.memory_bytes is not None
    memory = forecast_memory(architecture, setup) if is_gpu else None
    return RunForecast(architecture, setup, hardware, memory, _rate(architecture, setup, hardware, arguments))


def training_setup(
    config: PreTrainedConfig,
    arguments: Any,
    sequence_length: int,
    num_ranks: int,
    sharding: Sharding,
    parameter_dtype: torch.dtype,
) -> TrainingSetup:
    """How one rank trains, in the planner's words."""
    return TrainingSetup(
        micro_batch=arguments.per_device_train_batch_size,
        sequence_length=sequence_length,
        accumulation=arguments.gradient_accumulation_steps,
        num_ranks=num_ranks,
        sharding=sharding,
        precision=_precision(arguments, sharding, parameter_dtype),
        execution=_execution(arguments),
        loss="chunked",
        loss_chunk_tokens=config.loss_chunk_tokens,
        checkpointing=recomputes(arguments),
        optimizer="muon" if arguments.optimizer == "muon" else "adamw",
    )


def _precision(arguments: Any, sharding: Sharding, parameter_dtype: torch.dtype) -> Precision:
    if arguments.float8 and sharding.startswith("zero"):
        return "fp8"  # elsewhere the masters are fp32 parameters, which the planner calls bf16_mixed
    if not has_masters(parameter_dtype, arguments, engine_of_sharding(sharding)):
        return "bf16"
    is_mixed = precision_of(arguments) != "no" or parameter_dtype != torch.float32
    return "bf16_mixed" if is_mixed else "fp32"


def _execution(arguments: Any) -> Execution:
    if arguments.torch_compile:
        return "compiled"
    return "compiled_layers" if arguments.compile_layers else "eager"


def _rate(
    architecture: Architecture, setup: TrainingSetup, hardware: Hardware, arguments: Any
) -> RateForecast | str:
    if hardware.gpu is None:
        what = "a CPU has" if hardware.memory_bytes is None else f"{hardware.name} has"
        return f"{what} no dense peak in the planner's table"
    if arguments.float8:
        setup = replace(setup, precision="fp8")
    tokens = setup.tokens * setup.accumulation * setup.num_ranks * arguments.max_steps
    try:
        return forecast_rate(architecture, setup, hardware.gpu, tokens)
    except PlanError as error:
        return str(error)


def sharding_of(state: Any) -> Sharding:
    """The back end that accelerate set up, in the planner's words.

    Args:
        state: ``accelerate.state.AcceleratorState``.

    Raises:
        FoundryError: one the planner has no formula for.
    """
    kind = state.distributed_type
    if kind == DistributedType.DEEPSPEED:
        stages: tuple[Sharding, ...] = ("ddp", "zero1", "zero2", "zero3")
        return stages[int(state.deepspeed_plugin.zero_stage)]
    known: dict[DistributedType, Sharding] = {
        DistributedType.NO: "none", DistributedType.MULTI_CPU: "ddp", DistributedType.MULTI_GPU: "ddp",
        DistributedType.FSDP: "fsdp2",
    }  # fmt: skip
    if kind not in known:
        raise FoundryError(f"launch: distributed_type {kind.value} has no forecast; use DDP, ZeRO or FSDP2")
    return known[kind]


def hardware_here(device: torch.device, num_ranks: int) -> Hardware:
    """The device of this rank; what it can still use is what is free and what this process holds already."""
    if device.type != "cuda":
        return Hardware("CPU", num_ranks)
    name = torch.cuda.get_device_name(device)
    free, _ = torch.cuda.mem_get_info(device)
    usable = free + torch.cuda.memory_reserved(device)
    return Hardware(name, num_ranks, gpu_of_device(name), usable)
