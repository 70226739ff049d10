"""The way back to before a loss spike: the last whole checkpoint, and an order of samples without the spike's."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list

from ..run_record import RECORD_NAME
from ..settings import FoundryError
from ..terminal import console
from .checkpoints import newest_whole_checkpoint
from .loss_spikes import SpikeFoundError
from .run_end import UpdateRefusedError
from .sample_order import SampleOrder, read_order, write_order
from .watch import end_together


def left_out_by(order: SampleOrder, step: int, checkpoint_step: int, num_steps: int) -> SampleOrder:
    """The order after a rollback from ``step``: the samples of up to ``num_steps`` steps before and with it go.

    Steps up to ``checkpoint_step`` stay as they were: they were taken.
    """
    first = first_left_out(step, checkpoint_step, num_steps)
    return order.without(first, step - first + 1)


def first_left_out(step: int, checkpoint_step: int, num_steps: int) -> int:
    """The first step whose samples a rollback from ``step`` leaves out."""
    return max(checkpoint_step + 1, step - num_steps + 1)


def train_with_rollbacks(
    attempt: Callable[[], None],
    roll_back: Callable[[SpikeFoundError], None],
) -> None:
    """Train; after a spike go back and train again, with everything built anew on every rank.

    Args:
        attempt: builds model, optimizer and trainer and trains to the end, from the newest whole checkpoint.
        roll_back: leaves the spike's samples out, or raises when there were too many.
    """
    while True:
        try:
            return attempt()
        except SpikeFoundError as spike:
            found = SpikeFoundError(
                spike.step, spike.loss, spike.limit
            )  # without the frames that hold the model
        roll_back(found)


def release_trainer(distributed_type: DistributedType) -> None:
    """Free the memory of the trainer that was left, and let DeepSpeed be set up a second time."""
    if distributed_type == DistributedType.DEEPSPEED:
        AcceleratorState._reset_state()  # what Trainer itself calls between the trials of a sweep
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def order_after(
    spike: SpikeFoundError, output_dir: Path, order: SampleOrder, max_rollbacks: int, num_steps: int
) -> tuple[SampleOrder, str]:
    """The order to go on with and what to say of it.

    Raises:
        UpdateRefusedError: ``max_rollbacks`` were used up.
    """
    if len(order.left_out) >= max_rollbacks:
        raise UpdateRefusedError(
            f"{output_dir}: {spike}, and {len(order.left_out)} rollback(s) were made already (max_rollbacks); "
            "look at the samples with the replay command, lower learning_rate, or raise max_rollbacks",
            spike.step - 1,
        )
    checkpoint = newest_whole_checkpoint(output_dir)
    start = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
    new = left_out_by(order, spike.step, start, num_steps)
    first = first_left_out(spike.step, start, num_steps)
    number = (spike.step - first + 1) * order.sequences_per_step
    where = checkpoint.name if checkpoint else "the start"
    return new, f"{spike}; back to {where}; {number} sample(s) are left out from step {first} on"


def order_of(arguments: Any) -> SampleOrder:
    """The run's order of samples; of a new run the plain one, nothing left out.

    With another number of ranks or another micro-batch the accumulation steps are set so that a step reads what it
    would have read.

    Raises:
        FoundryError: the run's sequences of a step cannot be shared out that way.
    """
    folder = Path(arguments.output_dir)
    # Without its record a run has not begun: what a start that was killed before left there counts for nothing.
    order = read_order(folder) if _has_begun(folder) else None
    if order is None:
        per_pass = arguments.train_batch_size * arguments.world_size
        return SampleOrder(per_pass * arguments.gradient_accumulation_steps)
    _accumulate_as(order, arguments, folder)
    return order


def follow_batch(arguments: Any) -> None:
    """Set the accumulation as the run in ``output_dir`` (or the one it extends) needs it, before lengths are counted.

    A recipe that says another accumulation than the run's is left alone: the settings are compared later.

    Raises:
        FoundryError: as :func:`order_of`.
    """
    if arguments.overwrite or arguments.global_batch_tokens is not None:
        return  # nothing to follow, or the accumulation follows from the tokens
    folder = Path(arguments.output_dir)
    if arguments.extend_run is not None and not _has_begun(folder):
        folder = Path(arguments.extend_run)
    order = read_order(folder) if _has_begun(folder) else None
    if order is not None and _recorded_accumulation(folder) == arguments.gradient_accumulation_steps:
        _accumulate_as(order, arguments, folder)


def _has_begun(folder: Path) -> bool:
    return (folder / RECORD_NAME).is_file() or any(folder.glob("checkpoint-*"))


def _recorded_accumulation(folder: Path) -> int | None:
    try:
        record = json.loads((folder / RECORD_NAME).read_text())
        return record["settings"]["training"]["gradient_accumulation_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # said when the session compares its settings


def _accumulate_as(order: SampleOrder, arguments: Any, folder: Path) -> None:
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
    if accumulation != arguments.gradient_accumulation_steps:
        if arguments.process_index == 0:
            console.print(
                f"pretrain: {arguments.world_size} rank(s), so gradient_accumulation_steps is {accumulation}: "
                f"a step reads {order.sequences_per_step} sequences as before"
            )
        arguments.gradient_accumulation_steps = accumulation


def roll_back(spike: SpikeFoundError, arguments: Any) -> None:
    """Rank 0 writes the order that leaves the spike's samples out; all ranks go on from it, or all stop.

    Raises:
        UpdateRefusedError: too many rollbacks.
    """
    release_trainer(arguments.distributed_state.distributed_type)
    output_dir, is_main = Path(arguments.output_dir), arguments.process_index == 0
    outcome: list[Any] = [None]
    if is_main:
        try:
            order, words = order_after(
                spike, output_dir, order_of(arguments), arguments.max_rollbacks, arguments.rollback_steps
            )
            write_order(output_dir, order)
            console.print(f"pretrain: {words}")
        except UpdateRefusedError as end:
            outcome = [(str(end), end.step)]
    broadcast_object_list(outcome)
    if outcome[0] is not None:
        refused = UpdateRefusedError(*outcome[0])
        end_together(refused, output_dir, is_main)
        raise refused
