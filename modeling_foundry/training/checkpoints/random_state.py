"""The random generators of one rank as safetensors, so that dropout goes on as if nothing had happened."""

from __future__ import annotations

import hashlib
import logging
import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed

from ...settings import FoundryError
from .checkpoints import RANDOM_STATE, read_seal

logger = logging.getLogger(__name__)


def state_path(folder: Path, rank: int) -> Path:
    return folder / f"{RANDOM_STATE}{rank:05}.safetensors"


def save_random_state(folder: Path, rank: int) -> None:
    """Write the states of Python, NumPy, PyTorch on the CPU and on this rank's GPU."""
    save_file(random_state(), state_path(folder, rank))


def random_state() -> dict[str, Tensor]:
    """What :func:`save_random_state` writes."""
    _, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(tuple, np.random.get_state())
    if name != "MT19937":
        raise FoundryError(f"NumPy's generator is {name}; its state cannot be saved, leave it MT19937")
    state: dict[str, Tensor] = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.tensor(keys.astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def load_random_state(folder: Path, rank: int) -> None:
    """Set every generator as it was.

    Raises:
        FoundryError: the file is missing or not one of ours.
    """
    path = state_path(folder, rank)
    try:
        set_random_state(load_file(path))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise FoundryError(
            f"{path}: no random state to go on from ({error}); restore the checkpoint"
        ) from error


def set_random_state(state: dict[str, Tensor]) -> None:
    """Set every generator as :func:`random_state` found it."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy_gauss"].item()))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def reseed(seed: int, step: int, rank: int) -> None:
    """A state of its own for a rank that none was saved for, the same in every repetition."""
    digest = hashlib.sha256(f"{seed} {step} {rank}".encode()).digest()
    set_seed(int.from_bytes(digest[:4], "big"))


class RandomState:
    """Part of a checkpoint: the generators of every rank, one file each."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def save(self, folder: Path) -> None:
        save_random_state(folder, self.trainer.args.process_index)

    def load(self, folder: Path) -> None:
        num_saved_ranks = read_seal(folder)["world_size"]
        self.trainer.add_callback(RandomStateAtFirstStep(folder, num_saved_ranks))


class RandomStateAtFirstStep(TrainerCallback):
    """Restores the generators when the first step begins: making the data loader has drawn from them.

    Between two epochs the run before would have made a new one, too: there they are restored before that.
    An evaluation that the run before still owes draws from them too, as it would have done there.
    """

    def __init__(self, folder: Path, num_saved_ranks: int) -> None:
        self.folder, self.num_saved_ranks = folder, num_saved_ranks
        self.done = False
        self.after_evaluation: dict[str, Tensor] | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if args.eval_on_start:
            self._restore(args, state)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if not self.done:
            self.after_evaluation = random_state()

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.epoch is not None and float(state.epoch).is_integer():
            self._restore_once(args, state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._restore_once(args, state)

    def _restore_once(self, args: TrainingArguments, state: TrainerState) -> None:
        if self.done:
            return
        self.done = True
        if self.after_evaluation is not None:
            set_random_state(self.after_evaluation)
        else:
            self._restore(args, state)

    def _restore(self, args: TrainingArguments, state: TrainerState) -> None:
        if self.num_saved_ranks == args.world_size:
            load_random_state(self.folder, args.process_index)
            return
        reseed(args.seed, state.global_step, args.process_index)
        if args.process_index == 0:
            logger.warning(
                "%s was written by %d rank(s), going on with %d: dropout draws other numbers from here on",
                self.folder.name, self.num_saved_ranks, args.world_size,
            )  # fmt: skip
