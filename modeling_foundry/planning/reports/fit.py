"""The largest micro-batch that fits a GPU, for every way to shard and recompute: ``plan.py fit``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..formulas.memory import Sharding, TrainingSetup, forecast_memory
from ..models.architecture import Architecture, describe
from ..models.model_files import read_model
from ..options import FitCommand, quantity
from .model import check_precision, memory_report, resolve_ranks, resolve_sequence, resolve_setup

LARGEST_MICRO_BATCH = 65_536
# Fastest first: less communication, then less recomputation.
SHARDINGS: tuple[Sharding, ...] = ("zero1", "ddp", "zero2", "fsdp2", "zero3")


def fit_report(command: FitCommand) -> dict[str, Any]:
    """Everything ``plan.py fit`` says, ready for JSON."""
    file = read_model(command.model)
    memory = command.needed_memory_bytes()
    sequence = resolve_sequence(command.sequence_length, file)
    ranks = resolve_ranks(command, file.recipe)
    recipe = file.recipe and replace(file.recipe, micro_batch=1)  # the largest is what is looked for
    base = resolve_setup(command, recipe, sequence, ranks)
    check_precision(command, base)
    batch_tokens = quantity("global_batch_tokens", command.global_batch_tokens, 1, 1e12)
    fixed = None if recipe is None else recipe.global_batch_tokens
    if batch_tokens is not None and base.accumulation == 1:
        base = replace(base, accumulation=2)  # gradients outlive a forward pass unless one pass is the batch
    available = memory * (1 - command.margin)
    rows = [_row(file.architecture, setup, available) for setup in _ways(command, base)]
    best = next((row for row in rows if row["micro_batch"]), None)
    if best is not None:
        best = best | _split(best["micro_batch"], batch_tokens, fixed, sequence, ranks)
        chosen = replace(base, **{name: best[name] for name in ("sharding", "checkpointing", "micro_batch")})
        best["device_bytes"] = forecast_memory(file.architecture, chosen).device_bytes
    return {
        "model": {
            "source": file.source,
            "family": file.architecture.family,
            "description": describe(file.architecture),
        },
        "gpu": {"name": command.gpu_name(), "bytes": memory, "margin": command.margin, "num_gpus": ranks},
        "sequence_length": sequence,
        "ways": rows,
        "best": best,
        "memory": None if best is None else memory_report(file, chosen, command),
        "bars": [] if best is None else _bars(file.architecture, chosen),
    }


def _bars(architecture: Architecture, setup: TrainingSetup) -> list[dict[str, Any]]:
    """Terms of the peak at a quarter, half, all and twice the largest micro-batch, for the picture."""
    sizes = sorted({max(1, round(setup.micro_batch * part)) for part in (0.25, 0.5, 1, 2)})
    forecasts = [(size, forecast_memory(architecture, replace(setup, micro_batch=size))) for size in sizes]
    return [
        {"micro_batch": size, "terms_bytes": forecast.terms, "outside_allocator_bytes": forecast.outside}
        for size, forecast in forecasts
    ]


def _ways(command: FitCommand, base: TrainingSetup) -> list[TrainingSetup]:
    """Every sharding and recomputation the command leaves open, fastest first."""
    open_ways: tuple[Sharding, ...] = SHARDINGS if base.num_ranks > 1 else ("none",)
    if base.optimizer == "muon" and base.num_ranks > 1:
        open_ways = ("ddp",)  # Muon needs whole matrices
    shardings = (command.sharding,) if command.sharding else open_ways
    recompute = (False, True) if command.checkpointing is None else (command.checkpointing,)
    return [
        replace(base, sharding=sharding, checkpointing=checkpointing)
        for checkpointing in recompute
        for sharding in shardings
    ]


def _row(architecture: Architecture, setup: TrainingSetup, available: float) -> dict[str, Any]:
    micro_batch = largest_micro_batch(architecture, setup, available)
    shown = replace(setup, micro_batch=max(1, micro_batch))
    return {
        "sharding": setup.sharding,
        "checkpointing": setup.checkpointing,
        "micro_batch": micro_batch,
        "device_bytes": forecast_memory(architecture, shown).device_bytes,
    }


def largest_micro_batch(architecture: Architecture, setup: TrainingSetup, available_bytes: float) -> int:
    """Sequences of one forward pass that fit ``available_bytes`` of device memory; 0 when one does not."""

    def fits(micro_batch: int) -> bool:
        return (
            forecast_memory(architecture, replace(setup, micro_batch=micro_batch)).device_bytes
            <= available_bytes
        )

    if not fits(1):
        return 0
    low, high = 1, 2
    while high <= LARGEST_MICRO_BATCH and fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return min(low, LARGEST_MICRO_BATCH)


def _split(
    largest: int, batch_tokens: float | None, fixed_tokens: int | None, sequence: int, ranks: int
) -> dict[str, Any]:
    """A global batch in equal micro-batches: the fewest passes that fit, then the least padding.

    Args:
        fixed_tokens: the recipe's own, of which training takes no part and no more; another that was asked
            for is rounded.
    """
    wanted = batch_tokens or fixed_tokens
    if wanted is None:
        return {}
    per_rank = max(1, round(wanted / sequence / ranks))
    if batch_tokens is None:
        micro_batch = next(size for size in range(min(largest, per_rank), 0, -1) if per_rank % size == 0)
    else:
        micro_batch = -(-per_rank // -(-per_rank // largest))
    accumulation = -(-per_rank // micro_batch)
    return {
        "micro_batch": micro_batch,
        "accumulation": accumulation,
        "batch_tokens": micro_batch * accumulation * ranks * sequence,
        "counts_in_tokens": fixed_tokens is not None,
    }
