"""What a checkpoint holds beside the model, part by part.

Trainer writes optimizer, scheduler and random states as pickles, and starts afresh without a word where one is
missing.  With ``save_only_model`` it writes none of them.  A part of ours is one class and one line in
:func:`checkpoint_parts`; ``DurableCheckpoints`` has each written by every rank and then seals the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from ...files import write_atomically
from ...settings import FoundryError
from ..safety.update_guard import GuardWindow
from .log_window import LogWindow
from .optimizer_state import load_optimizer, save_optimizer
from .random_state import RandomState

SCHEDULER_NAME = "scheduler.json"
LOSS_SCALE_NAME = "loss_scale.json"
REFERENCE_NAME = "reference.safetensors"


class CheckpointPart(Protocol):
    """One thing that a resumed run needs beside the model; every rank calls both."""

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint folder that is there."""

    def load(self, folder: Path) -> None:
        """Put it back into the trainer, whose model and optimizer are wrapped, before the first step.

        Raises:
            FoundryError: naming the file that is missing or cannot be read.
        """


def checkpoint_parts(trainer: Any) -> list[CheckpointPart]:
    """Every part, in the order in which they are written and read."""
    return [
        Optimizer(trainer),
        Schedule(trainer),
        LogWindow(trainer),
        RandomState(trainer),
        GuardWindow(trainer),
        LossScale(trainer),
        MovingReference(trainer),
    ]


class Optimizer:
    """Moments, and fp32 weights where the back end keeps them apart: ``optimizer_state`` has the format."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def save(self, folder: Path) -> None:
        trainer = self.trainer
        save_optimizer(folder, trainer.model_wrapped, trainer.optimizer, trainer.is_world_process_zero())

    def load(self, folder: Path) -> None:
        load_optimizer(folder, self.trainer.model_wrapped, self.trainer.optimizer)


class Schedule:
    """Where the learning rate stands."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def save(self, folder: Path) -> None:
        if self.trainer.is_world_process_zero():
            content = json.dumps(self.trainer.lr_scheduler.state_dict(), indent=1)
            write_atomically(folder / SCHEDULER_NAME, content + "\n")

    def load(self, folder: Path) -> None:
        path = folder / SCHEDULER_NAME
        try:
            self.trainer.lr_scheduler.load_state_dict(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise FoundryError(
                f"{path}: no schedule to go on from ({error}); restore the checkpoint"
            ) from error


class LossScale:
    """The scale of fp16's loss, where there is one."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def save(self, folder: Path) -> None:
        scaler = getattr(self.trainer.accelerator, "scaler", None)
        if scaler is not None and self.trainer.is_world_process_zero():
            write_atomically(folder / LOSS_SCALE_NAME, json.dumps(scaler.state_dict(), indent=1) + "\n")

    def load(self, folder: Path) -> None:
        scaler, path = getattr(self.trainer.accelerator, "scaler", None), folder / LOSS_SCALE_NAME
        if scaler is not None:
            with _nothing_to_go_on_from(path):
                scaler.load_state_dict(json.loads(path.read_text()))


class MovingReference:
    """DPO's reference model where it follows the trained one (``sync_ref_model``)."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.moves = getattr(trainer.args, "sync_ref_model", False)

    def _reference(self) -> Any:
        return self.trainer.accelerator.unwrap_model(self.trainer.ref_model)

    def save(self, folder: Path) -> None:
        if self.moves and self.trainer.is_world_process_zero():
            save_model(self._reference(), str(folder / REFERENCE_NAME))

    def load(self, folder: Path) -> None:
        path = folder / REFERENCE_NAME
        if self.moves:
            with _nothing_to_go_on_from(path):
                load_model(self._reference(), str(path))


@contextmanager
def _nothing_to_go_on_from(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:200]
        raise FoundryError(f"{path}: nothing to go on from ({words}); restore the checkpoint") from error
