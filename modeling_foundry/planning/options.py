"""The settings of the planner's commands, and the checks every number passes before it is used."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from .formulas.hardware import Gpu, find_gpu
from .formulas.memory import Execution, Loss, Precision, Sharding
from .models.fields import PlanError

DType = Literal["fp32", "bf16", "fp8", "int4"]
SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18, "Z": 1e21}


def option(default: Any, text: str) -> Any:
    """A dataclass field with its help line."""
    return field(default=default, metadata={"help": text})


def quantity(name: str, text: str | None, low: float, high: float) -> float | None:
    """A number as people write it: ``100B``, ``1.5T``, ``9.2e21``.

    Raises:
        PlanError: not a number, or outside (low, high).
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9_]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?)\s*([KMBGTPEZ]?)\s*", text)
    if match is None:
        raise PlanError(f"{name}: expected a number such as 100B or 9.2e21, found {text[:40]!r}")
    value = float(match.group(1).replace("_", "")) * SUFFIXES[match.group(2)]
    return within(name, value, low, high)


def within(name: str, value: float | None, low: float, high: float) -> float | None:
    """The value, which must lie in [low, high]; None stays None."""
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise PlanError(f"{name}: expected a number from {low:g} to {high:g}, found {value:g}")
    return value


@dataclass
class ModelOptions:
    """Which model."""

    model: str = field(metadata={"help": "config.json, a folder that holds one, or a recipe's pretrain.yaml"})
    sequence_length: int | None = option(None, "tokens of one sequence; default the recipe's, or 2,048")

    def check_model(self) -> None:
        within("sequence_length", self.sequence_length, 1, 10_000_000)


@dataclass
class GpuOptions:
    """On what."""

    gpu: str = option("H200", "a GPU of `plan.py gpus`")
    gpu_peak: float | None = option(None, "dense bf16 peak in TFLOP/s of a GPU that is not in the table")
    gpu_memory_gib: float | None = option(None, "memory of one GPU in GiB; default the table's")
    num_gpus: int | None = option(None, "GPUs; default what the recipe expects, or 8")

    def check_gpu(self) -> None:
        within("gpu_peak", self.gpu_peak, 1e-3, 1e7)
        within("gpu_memory_gib", self.gpu_memory_gib, 1e-3, 1e6)
        within("num_gpus", self.num_gpus, 1, 1_000_000)

    def known_gpu(self) -> Gpu | None:
        """The table's entry; None when a peak was given instead."""
        return None if self.gpu_peak is not None else find_gpu(self.gpu)

    def gpu_name(self) -> str:
        gpu = self.known_gpu()
        return gpu.name if gpu else f"a GPU of {self.gpu_peak:g} TFLOP/s"

    def peak_flops(self) -> float:
        """Dense bf16 FLOPs a second of one GPU."""
        gpu = self.known_gpu()
        return gpu.bf16_flops if gpu else (self.gpu_peak or 0.0) * 1e12

    def memory_bytes(self) -> int | None:
        gpu = self.known_gpu()
        if self.gpu_memory_gib is not None:
            return round(self.gpu_memory_gib * 2**30)
        return gpu.memory_bytes if gpu else None

    def needed_memory_bytes(self) -> int:
        """Memory of one GPU, for a command that can say nothing without it.

        Raises:
            PlanError: a GPU that is not in the table, and no memory given.
        """
        memory = self.memory_bytes()
        if memory is None:
            raise PlanError("gpu_memory_gib: missing; give the memory of a GPU that is not in the table")
        return memory


@dataclass
class HardwareOptions(GpuOptions):
    """On what, how well used, at which price."""

    mfu: float | None = option(None, "model FLOPs utilisation, 0 to 1; default typical for the GPU")
    uptime: float = option(1.0, "part of the time in which training makes progress")
    usd_per_gpu_hour: float | None = option(None, "price of one GPU for one hour")
    power_overhead: float = option(1.0, "room and host power over the GPUs' own limit (PUE)")

    def check_hardware(self) -> None:
        self.check_gpu()
        within("mfu", self.mfu, 1e-6, 1)
        within("uptime", self.uptime, 1e-3, 1)
        within("usd_per_gpu_hour", self.usd_per_gpu_hour, 0, 1e6)
        within("power_overhead", self.power_overhead, 1, 10)

    def utilisation(self) -> float | None:
        """MFU to forecast bf16 training with; None when neither given nor known for the GPU."""
        gpu = self.known_gpu()
        return self.mfu if self.mfu is not None else gpu.typical_mfu if gpu else None


@dataclass
class SetupOptions:
    """How one rank trains; each default is the recipe's."""

    micro_batch: int | None = option(
        None, "sequences of one forward pass on one GPU; default the recipe's, or 1"
    )
    accumulation: int | None = option(None, "forward passes of one optimizer step")
    sharding: Sharding | None = field(
        default=None, metadata={"help": "default none on one GPU, zero1 on several"}
    )
    precision: Precision | None = field(
        default=None, metadata={"help": "default bf16_mixed, fp32 for a CPU recipe"}
    )
    execution: Execution | None = field(
        default=None, metadata={"help": "default the recipe's compile_layers; compiled_layers for a config"}
    )
    loss: Loss = field(
        default="chunked", metadata={"help": "cross-entropy: in chunks (ours), or over all logits at once"}
    )
    checkpointing: bool | None = option(None, "recompute activations layer by layer")

    def check_setup(self) -> None:
        within("micro_batch", self.micro_batch, 1, 1_000_000)
        within("accumulation", self.accumulation, 1, 1_000_000)


@dataclass
class OutputOptions:
    """How it is shown."""

    json: bool = option(False, "print JSON for machines instead of tables")

    def plot_folder(self) -> str | None:
        """Folder of the pictures asked for; a command that draws none has no such setting."""
        return None


@dataclass
class PictureOptions(OutputOptions):
    """How it is shown and drawn."""

    plot: bool | str | None = option(None, "write pictures; a folder may follow (default runs/plan)")

    def plot_folder(self) -> str | None:
        if self.plot is None or self.plot is False:
            return None
        return "runs/plan" if self.plot is True else str(self.plot)


@dataclass
class ModelCommand(SetupOptions, HardwareOptions, PictureOptions, ModelOptions):
    """``plan.py model``."""

    tokens: str | None = option(None, "tokens to train on, such as 100B; default the recipe's steps")
    tokens_per_second: float | None = option(None, "a measured rate of all GPUs, instead of MFU")

    def __post_init__(self) -> None:
        self.check_model()
        self.check_hardware()
        self.check_setup()
        quantity("tokens", self.tokens, 1, 1e18)
        within("tokens_per_second", self.tokens_per_second, 1e-6, 1e15)
        if self.mfu is not None and self.tokens_per_second is not None:
            raise PlanError("mfu: follows from --tokens_per_second; give one of them")


@dataclass
class FitCommand(SetupOptions, GpuOptions, PictureOptions, ModelOptions):
    """``plan.py fit``."""

    margin: float = option(0.05, "part of the GPU's memory to leave free")
    global_batch_tokens: str | None = option(None, "tokens of one optimizer step, such as 4M, to be split")

    def __post_init__(self) -> None:
        self.check_model()
        self.check_gpu()
        self.check_setup()
        within("margin", self.margin, 0, 0.9)
        if self.micro_batch is not None:
            raise PlanError("micro_batch: fit finds it; leave it out")


@dataclass
class ServeCommand(GpuOptions, OutputOptions, ModelOptions):
    """``plan.py serve``."""

    num_gpus: int | None = option(None, "GPUs that hold the model together; default 1")
    context_tokens: int | None = option(None, "tokens of prompt and answer together; default several")
    batch: int | None = option(None, "sequences at one time; default several")
    dtype: DType = field(default="bf16", metadata={"help": "of the weights"})
    cache_dtype: Literal["bf16", "fp8"] = option("bf16", "of the key-value cache")
    margin: float = option(0.1, "part of the GPUs' memory to leave free")

    def __post_init__(self) -> None:
        self.check_model()
        self.check_gpu()
        within("context_tokens", self.context_tokens, 1, 100_000_000)
        within("batch", self.batch, 1, 10_000_000)
        within("margin", self.margin, 0, 0.9)


@dataclass
class GpusCommand(OutputOptions):
    """``plan.py gpus``."""


@dataclass
class BudgetOptions(HardwareOptions):
    """How much may be spent, by which law, under which caps."""

    flops: str | None = option(None, "the budget in FLOPs, such as 1e21")
    hours: float | None = option(None, "the budget as hours of --num_gpus GPUs")
    usd: float | None = option(None, "the budget as money, with --usd_per_gpu_hour")
    law: Literal["besiroglu", "hoffmann", "hoffmann_unrounded", "muennighoff", "custom"] = option(
        "besiroglu", "scaling law"
    )
    law_e: float | None = option(None, "E of --law custom")
    law_a: float | None = option(None, "A of --law custom")
    law_b: float | None = option(None, "B of --law custom")
    law_alpha: float | None = option(None, "alpha of --law custom")
    law_beta: float | None = option(None, "beta of --law custom")
    dataset_tokens: str | None = option(None, "tokens there are, such as 627B; more are repeated epochs")
    max_epochs: float | None = option(None, "epochs over the dataset at most; default 4")
    max_parameters: str | None = option(None, "largest model that may be served, such as 8B")
    inference_tokens: str | None = option(
        None, "tokens the model will serve in its life, paid from the budget"
    )

    def check_budget(self) -> None:
        self.check_hardware()
        within("hours", self.hours, 1e-3, 1e7)
        within("usd", self.usd, 1e-2, 1e13)
        within("max_epochs", self.max_epochs, 1e-3, 1e4)
        for name, low, high in (("e", 0, 100), ("a", 1e-9, 1e12), ("b", 1e-9, 1e12)):
            within(f"law_{name}", getattr(self, f"law_{name}"), low, high)
        within("law_alpha", self.law_alpha, 0.01, 2)
        within("law_beta", self.law_beta, 0.01, 2)

    def law_constants(self) -> dict[str, float | None]:
        return {key: getattr(self, f"law_{key}") for key in ("e", "a", "b", "alpha", "beta")}


@dataclass
class BudgetCommand(BudgetOptions, PictureOptions):
    """``plan.py budget``."""

    model: str | None = option(None, "a model whose tokens and loss are wanted; config.json or recipe")
    parameters: str | None = option(None, "or its size alone, such as 7B; FLOPs a token are then 6 N")
    sequence_length: int | None = option(None, "tokens of one sequence; default the recipe's, or 2,048")
    fit_memory: bool = option(False, "only sizes whose ZeRO-1 state fits the GPUs")

    def __post_init__(self) -> None:
        self.check_budget()
        within("sequence_length", self.sequence_length, 1, 10_000_000)


@dataclass
class SearchCommand(BudgetOptions, OutputOptions):
    """``plan.py search``."""

    sequence_length: int = option(2048, "tokens of one sequence")
    vocab_sizes: list[int] | None = field(
        default=None, metadata={"help": "embedding rows to consider; default the common ones"}
    )
    tie_word_embeddings: bool | None = option(None, "default both")
    micro_batch: int = option(4, "sequences of one forward pass that must fit the GPU")
    checkpointing: bool = option(False, "recompute activations layer by layer")
    margin: float = option(0.05, "part of the GPU's memory to leave free")
    min_layers: int = option(4, "bound of depth")
    max_layers: int = option(80, "bound of depth")
    min_hidden: int = option(128, "bound of width")
    max_hidden: int = option(8192, "bound of width")
    min_width_over_depth: float = option(32.0, "hidden_size / num_hidden_layers at least")
    max_width_over_depth: float = option(192.0, "hidden_size / num_hidden_layers at most")
    top: int = option(10, "how many to show")
    emit: str | None = option(None, "write the recommended one as an experiment, such as recipes/my_model")
    data_dir: str | None = option(None, "prepared data of the emitted recipe; default runs/<name>/data")
    use_cpu: bool = option(False, "emit recipes for a CPU")

    def __post_init__(self) -> None:
        self.check_budget()
        within("sequence_length", self.sequence_length, 1, 10_000_000)
        for name, low, high in (
            ("layers", 1, 1000),
            ("hidden", 128, 65_536),
            ("width_over_depth", 1, 10_000),
        ):
            least, most = (getattr(self, f"{side}_{name}") for side in ("min", "max"))
            within(f"min_{name}", least, low, high)
            within(f"max_{name}", most, low, high)
            if least > most:
                raise PlanError(f"min_{name}: {least:g} is more than max_{name} = {most:g}")
        for rows in self.vocab_sizes or []:
            within("vocab_sizes", rows, 256, 10_000_000)
        within("micro_batch", self.micro_batch, 1, 65_536)
        within("margin", self.margin, 0, 0.9)
        within("top", self.top, 1, 1000)
