"""The way back to before a loss spike: the last whole checkpoint, and an order of samples without the spike's."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, broadcast_object_list

from ..data.sequences.sample_order import SampleOrder, write_order
from ..terminal import console
from ..training.checkpoints.checkpoints import newest_whole_checkpoint
from ..training.plan import RunPlan
from ..training.processes.endings import UpdateRefusedError
from ..training.safety.loss_spikes import SpikeFoundError
from ..training.watch import end_together
from .batch import order_of


def left_out_by(order: SampleOrder, step: int, checkpoint_step: int, num_steps: int) -> SampleOrder:
    """The order after a rollback from ``step``: the samples of up to ``num_steps`` steps before and with it go.

    Steps up to ``checkpoint_step`` stay as they were: they were taken.
    """
    first = first_left_out(step, checkpoint_step, num_steps)
    return order.without(first, step - first + 1)


def first_left_out(step: int, checkpoint_step: int, num_steps: int) -> int:
    """The first step whose samples a rollback from ``step`` leaves out."""
    return max(checkpoint_step + 1, step - num_steps + 1)


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


def roll_back(spike: SpikeFoundError, plan: RunPlan) -> None:
    """Rank 0 writes the order that leaves the spike's samples out; all ranks go on from it, or all stop.

    Raises:
        UpdateRefusedError: too many rollbacks.
    """
    arguments = plan.arguments
    release_trainer(arguments.distributed_state.distributed_type)
    output_dir, is_main = Path(arguments.output_dir), arguments.process_index == 0
    outcome: list[Any] = [None]
    if is_main:
        try:
            order, words = order_after(
                spike, output_dir, order_of(plan), arguments.max_rollbacks, arguments.rollback_steps
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
