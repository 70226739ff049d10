"""The batches of the next optimizer step, fetched one by one while the device works on this one.

Trainer fetches every micro-batch of a step before it launches the first of them, and the update before has just made
it wait for the device: a GPU stands still meanwhile, longer with more accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

import torch


class ReadAhead:
    """Behind each forward pass that a guarded Trainer launches, one batch of the next step is read.

    The order of the batches is the loader's; only the moment of asking differs.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self._source: Iterator[Any] | None = None  # Trainer's, of this epoch
        self._ahead: tuple[Any, ...] = ()

    def batches(self, epoch_iterator: Iterator[Any]) -> Iterator[Any]:
        """What was read ahead, then the loader's own."""
        if epoch_iterator is not self._source:  # a new epoch, or the run went back to a checkpoint
            self._source, self._ahead = epoch_iterator, ()
        ahead, self._ahead = self._ahead, ()
        return chain(ahead, self._timed(epoch_iterator, lambda: False))

    def one_more(self) -> None:
        """Read one batch of the next step now."""
        if self._source is None:
            return
        trainer = self.trainer
        trainer.guard.mark(trainer.state.global_step, "reading a batch of the step after the next")
        source = self._timed(self._source, work_queued(trainer.args.device))
        self._ahead += tuple(islice(source, 1))
        trainer.guard.mark(trainer.state.global_step, "inside the backward pass of the next step")

    def _timed(self, batches: Iterator[Any], is_device_busy: Callable[[], bool]) -> Iterator[Any]:
        if self.trainer.run_log is None or not self._copies_wait_for_nothing():
            return batches
        return self.trainer.run_log.timed(batches, is_device_busy)

    def _copies_wait_for_nothing(self) -> bool:
        """A blocking copy to the GPU waits for the step before: that is no wait for data, so none is logged."""
        arguments = self.trainer.args
        is_async = self.trainer.accelerator.non_blocking and arguments.dataloader_pin_memory
        return is_async or arguments.device.type == "cpu"


def work_queued(device: torch.device) -> Callable[[], bool]:
    """Whether the device still has to do what is queued for it now; never on a CPU, which queues nothing."""
    if device.type != "cuda":
        return lambda: False
    reached = torch.cuda.Event()
    reached.record()
    return lambda: not reached.query()
