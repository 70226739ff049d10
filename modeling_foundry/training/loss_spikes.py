"""Loss spikes: a robust window over the last losses, and the way back to before one.

A loss is a spike when it lies above median + deviations x 1.4826 x MAD of the last losses.  The median absolute
deviation times 1.4826 estimates a standard deviation that one outlier cannot move (Hampel 1974).
"""

from __future__ import annotations

import gc
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from .checkpoints import newest_whole_checkpoint
from .run_end import UpdateRefusedError
from .sample_order import SampleOrder

STANDARD_DEVIATIONS_PER_MAD = 1.4826
# Losses that hardly differ would make any rise a spike.
SMALLEST_SPREAD = 1e-3  # of the median


class LossWindow:
    """The last ``num_steps`` losses of applied updates and the limit above which the next one is a spike.

    Args:
        num_steps: losses needed before any is judged, and kept.
        deviations: robust standard deviations above the median.
    """

    def __init__(self, num_steps: int, deviations: float) -> None:
        self.deviations = deviations
        self.losses: deque[float] = deque(maxlen=num_steps)

    def limit(self) -> float:
        """The highest loss that is no spike, in nats per token; infinite until the window is full."""
        if len(self.losses) < (self.losses.maxlen or 0):
            return math.inf
        middle = median(self.losses)
        spread = median(abs(loss - middle) for loss in self.losses) * STANDARD_DEVIATIONS_PER_MAD
        return middle + self.deviations * max(spread, SMALLEST_SPREAD * abs(middle))

    def add(self, loss: float) -> None:
        self.losses.append(loss)


class SpikeFoundError(Exception):
    """Raised on every rank before the update of a spike, for :func:`train_with_rollbacks` to catch."""

    def __init__(self, step: int, loss: float, limit: float) -> None:
        super().__init__(f"step {step}: loss {loss:.4f} is above {limit:.4f}")
        self.step, self.loss, self.limit = step, loss, limit


def left_out_by(order: SampleOrder, step: int, checkpoint_step: int, num_steps: int) -> SampleOrder:
    """The order after a rollback from ``step``: the samples of up to ``num_steps`` steps before and with it go.

    Steps up to ``checkpoint_step`` stay as they were: they were taken.
    """
    first = max(checkpoint_step + 1, step - num_steps + 1)
    return order.without(first, step - first + 1)


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
    first, number = new.left_out[-1]
    where = checkpoint.name if checkpoint else "the start"
    return new, f"{spike}; back to {where}; {number} sample(s) are left out from step {first} on"
