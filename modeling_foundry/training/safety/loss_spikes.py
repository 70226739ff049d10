"""Loss spikes: a robust window over the last losses.

A loss is a spike when it lies above median + deviations x 1.4826 x MAD of the last losses.  The median absolute
deviation times 1.4826 estimates a standard deviation that one outlier cannot move (Hampel 1974).
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median

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
    """Raised on every rank before the update of a spike; pretraining then rolls back and trains again."""

    def __init__(self, step: int, loss: float, limit: float) -> None:
        super().__init__(f"step {step}: loss {loss:.4f} is above {limit:.4f}")
        self.step, self.loss, self.limit = step, loss, limit

    def without_frames(self) -> SpikeFoundError:
        """The same without its traceback, whose frames hold the model."""
        return SpikeFoundError(self.step, self.loss, self.limit)
