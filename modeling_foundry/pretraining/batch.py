"""How a run's batch is made up: a step reads what it read when the run began, on whatever ranks now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.sequences.sample_order import SampleOrder, read_order
from ..run_record import RECORD_NAME
from ..settings import FoundryError
from ..training.plan import RunPlan


def order_of(plan: RunPlan) -> SampleOrder:
    """The run's order of samples; of a new run the plain one, nothing left out."""
    folder = Path(plan.arguments.output_dir)
    # Without its record a run has not begun: what a start that was killed before left there counts for nothing.
    order = read_order(folder) if has_begun(folder) else None
    return SampleOrder(plan.samples_per_step) if order is None else order


def accumulation_to_follow(arguments: Any) -> int | None:
    """Accumulation with which a step reads as in the run in ``output_dir`` (or the one it extends); None of a new one.

    A recipe that says another accumulation than the run's is left alone: the settings are compared later.

    Raises:
        FoundryError: the run's sequences of a step cannot be shared out by this micro-batch and these ranks.
    """
    if arguments.overwrite or arguments.global_batch_tokens is not None:
        return None  # nothing to follow, or the accumulation follows from the tokens
    folder = Path(arguments.output_dir)
    if arguments.extend_run is not None and not has_begun(folder):
        folder = Path(arguments.extend_run)
    order = read_order(folder) if has_begun(folder) else None
    if order is None or _recorded_accumulation(folder) != arguments.gradient_accumulation_steps:
        return None
    return _accumulation(order, arguments, folder)


def follow_words(plan: RunPlan) -> str:
    """What is said where another accumulation than the recipe's follows from the ranks."""
    return (
        f"{plan.num_ranks} rank(s), so gradient_accumulation_steps is {plan.accumulation}: a step reads "
        f"{plan.samples_per_step} sequences as before"
    )


def has_begun(folder: Path) -> bool:
    """Whether a run is there: its record, or a checkpoint."""
    return (folder / RECORD_NAME).is_file() or any(folder.glob("checkpoint-*"))


def _recorded_accumulation(folder: Path) -> int | None:
    try:
        record = json.loads((folder / RECORD_NAME).read_text())
        return record["settings"]["training"]["gradient_accumulation_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # said when the session compares its settings


def _accumulation(order: SampleOrder, arguments: Any, folder: Path) -> int:
    per_pass = arguments.train_batch_size * arguments.world_size
    accumulation, rest = divmod(order.sequences_per_step, per_pass)
    if rest or not accumulation:
        per_rank = order.sequences_per_step / arguments.world_size
        fits = f"a divisor of {per_rank:.0f}" if per_rank.is_integer() else "another number of ranks"
        raise FoundryError(
            f"{folder}: its steps read {order.sequences_per_step} sequences each, and "
            f"{arguments.world_size} rank(s) x per_device_train_batch_size {arguments.train_batch_size} does not "
            f"divide that; give {fits}"
        )
    return accumulation
