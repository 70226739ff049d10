"""A Trainer whose checkpoints hold no pickle and whose resume is strict.

Trainer writes optimizer, scheduler and random states as pickles and starts afresh without a word where one is
missing.  With ``save_only_model`` it writes none; :func:`save_training_state` writes ours instead, before the
checkpoint is sealed, and :class:`ResumableTrainer` reads them where Trainer would have read its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import nn
from transformers import Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..files import write_atomically
from ..settings import FoundryError
from .checkpoints import read_manifest, save_failures
from .log_window import LogWindow, save_log_window
from .optimizer_state import load_optimizer, save_optimizer
from .random_state import RandomStateAtFirstStep, save_random_state

SCHEDULER_NAME = "scheduler.json"
LOSS_SCALE_NAME = "loss_scale.json"
REFERENCE_NAME = "reference.safetensors"
PICKLED_ARGUMENTS = "training_args.bin"


class ResumableTrainer(Trainer):
    """Mixed into every trainer of ours, before TRL's."""

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        # Trainer has no public place between "model and optimizer are wrapped" and "training begins".
        if resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, None)
        folder = Path(resume_from_checkpoint)
        self.state.compute_steps(
            self.args, max_steps
        )  # Trainer takes intervals of the stored run for this one's
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # else Trainer has loaded the weights already
            load_weights(self.model, folder)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        load_training_state(self, folder)
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        # Trainer looks for the end behind a step: resumed at the last one, it would take another.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        # Trainer's own goes on without a weight that is missing, and takes a pickle for want of safetensors.
        model = self.model if model is None else model
        folder = Path(resume_from_checkpoint)
        if not hasattr(model, "peft_config"):
            return load_weights(model, folder)
        for path in folder.glob("*.bin"):
            raise FoundryError(f"{path}: a pickle, and checkpoints of ours hold none; remove it")
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The callbacks that complete a checkpoint come after this; DurableCheckpoints says the same of them.
        with save_failures(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: of a model in a folder TRL's says "a fine-tuned version of None"; the card is publishing's."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: it is a pickle; ours comes back with :class:`RandomStateAtFirstStep`."""

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Trainer pickles its arguments beside the model; nobody needs that, and a kill must leave no token in it.
        token, self.args.hub_token = self.args.hub_token, None
        if self.is_deepspeed_enabled and self.accelerator.unwrap_model(self.model_wrapped) is not self.model:
            state_dict = None  # DeepSpeed's is of the model with its adapter, and this one has it merged
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args.hub_token = token
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / PICKLED_ARGUMENTS).unlink(missing_ok=True)


def save_training_state(trainer: Trainer, folder: Path) -> None:
    """Optimizer, scheduler and random state beside the model in a checkpoint; every rank calls it."""
    save_optimizer(folder, trainer.model_wrapped, trainer.optimizer, trainer.is_world_process_zero())
    save_random_state(folder, trainer.args.process_index)
    save_log_window(trainer, folder)
    if trainer.is_world_process_zero():
        schedule = json.dumps(trainer.lr_scheduler.state_dict(), indent=1)
        write_atomically(folder / SCHEDULER_NAME, schedule + "\n")
        save_moving_parts(trainer, folder)


def save_moving_parts(trainer: Any, folder: Path) -> None:
    """What some options let move beside the model: the scale of fp16's loss, and a reference that follows (DPO)."""
    if (scaler := getattr(trainer.accelerator, "scaler", None)) is not None:
        write_atomically(folder / LOSS_SCALE_NAME, json.dumps(scaler.state_dict(), indent=1) + "\n")
    if getattr(trainer.args, "sync_ref_model", False):
        save_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(folder / REFERENCE_NAME))


def load_moving_parts(trainer: Any, folder: Path) -> None:
    """What :func:`save_moving_parts` wrote.

    Raises:
        FoundryError: naming the file that is missing or cannot be read.
    """
    path = folder / LOSS_SCALE_NAME
    try:
        if (scaler := getattr(trainer.accelerator, "scaler", None)) is not None:
            scaler.load_state_dict(json.loads(path.read_text()))
        if getattr(trainer.args, "sync_ref_model", False):
            path = folder / REFERENCE_NAME
            load_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(path))
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        words = " ".join(str(error).split())[:200]
        raise FoundryError(f"{path}: nothing to go on from ({words}); restore the checkpoint") from error


def load_training_state(trainer: Trainer, folder: Path) -> None:
    """What :func:`save_training_state` wrote, into the prepared trainer.

    Raises:
        FoundryError: naming the file that is missing or cannot be read.
    """
    load_optimizer(folder, trainer.model_wrapped, trainer.optimizer)
    path = folder / SCHEDULER_NAME
    try:
        trainer.lr_scheduler.load_state_dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise FoundryError(f"{path}: no schedule to go on from ({error}); restore the checkpoint") from error
    load_moving_parts(trainer, folder)
    trainer.add_callback(LogWindow(trainer, folder))
    trainer.add_callback(RandomStateAtFirstStep(folder, read_manifest(folder)["world_size"]))


def load_weights(model: nn.Module, folder: Path) -> None:
    """The weights of a checkpoint into a model that is not wrapped yet, every one of them.

    Raises:
        FoundryError: a tensor is missing or unknown.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFE_WEIGHTS_NAME]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    try:
        state = {name: tensor for file in names for name, tensor in load_file(folder / file).items()}
    except (OSError, SafetensorError) as error:
        raise FoundryError(
            f"{folder}: its weights cannot be read ({error}); restore the checkpoint"
        ) from error
    result = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    wrong = [*result.unexpected_keys, *(name for name in result.missing_keys if name not in tied)]
    if wrong:
        raise FoundryError(
            f"{folder}: not the weights of this model ({wrong[0]}); give the settings of the run"
        )
