"""The batches of the next optimizer step, fetched one by one while the device works on this one.

Trainer fetches every micro-batch of a step before it launches the first of them, and the update before has just made
it wait for the device: a GPU stands still meanwhile, longer with more accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import torch

from .callbacks import RunLog
from .guarded_trainer import GuardedUpdates


class BatchesAhead(GuardedUpdates):
    """Mix-in for a guarded Trainer: behind each forward pass it launches, one batch of the next step is read.

    The order of the batches is the loader's; only the moment of asking differs.
    """

    run_log: RunLog | None = None
    _batches: Iterator[Any] | None = None  # Trainer's, of this epoch
    _ahead: tuple[Any, ...] = ()

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        if epoch_iterator is not self._batches:  # a new epoch, or the run went back to a checkpoint
            self._batches, self._ahead = epoch_iterator, ()
        missing = self._timed(epoch_iterator, lambda: False)
        answer = super().get_batch_samples(chain(self._ahead, missing), num_batches, device)
        self._ahead = ()
        return answer

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        answer = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            self._read_ahead()
        return answer

    def _read_ahead(self) -> None:
        if self._batches is None:
            return
        self.guard.mark(self.state.global_step, "reading a batch of the step after the next")
        source = self._timed(self._batches, work_queued(self.args.device))
        self._ahead += tuple(islice(source, 1))
        self.guard.mark(self.state.global_step, "inside the backward pass of the next step")

    def _timed(self, batches: Iterator[Any], is_device_busy: Callable[[], bool]) -> Iterator[Any]:
        if self.run_log is None or not self._copies_wait_for_nothing():
            return batches
        return self.run_log.timed(batches, is_device_busy)

    def _copies_wait_for_nothing(self) -> bool:
        """A blocking copy to the GPU waits for the step before: that is no wait for data, so none is logged."""
        is_async = self.accelerator.non_blocking and self.args.dataloader_pin_memory
        return is_async or self.args.device.type == "cpu"


def work_queued(device: torch.device) -> Callable[[], bool]:
    """Whether the device still has to do what is queued for it now; never on a CPU, which queues nothing."""
    if device.type != "cuda":
        return lambda: False
    reached = torch.cuda.Event()
    reached.record()
    return lambda: not reached.query()
