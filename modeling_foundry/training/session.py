"""One training run from start, or from where it was, to its end: shared by pretrain, SFT and DPO."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..files import model_hash, settle, write_atomically
from ..run_record import RECORD_NAME, plain_settings, write_run_record
from ..settings import FoundryError
from ..terminal import console
from .callbacks import MeasuredSteps, RunLog
from .checkpoints import DurableCheckpoints
from .guarded_trainer import GuardedUpdates
from .launch import assert_launched_as_asked, engine_of, launch_words
from .precision import compute_precision, precision_in_force, precision_of
from .progress import ProgressLine
from .resumable_trainer import save_training_state
from .run_folder import COMPLETE_NAME, MODEL_FOLDER, RunFolder
from .sample_order import read_order
from .throughput import ModelFlops, model_flops
from .trackers import add_before_trackers, tracker_line
from .watch import train_watched

logger = logging.getLogger(__name__)


class TrainingSession(RunFolder):
    """A run folder and what is meant to happen in it."""

    def train(
        self,
        trainer: GuardedUpdates,
        checkpoint: Path | None,
        keep_checkpoints: int,
        expected_processes: int | None,
        tokens_per_step: int | None = None,
        finish: Callable[[Trainer], None] | None = None,
        sequence_length: int | None = None,
        lasting_steps: Collection[int] = (),
    ) -> None:
        """Train to the end, from ``checkpoint`` on, and write the final model.

        Args:
            checkpoint: what :meth:`resume_point` said; None starts anew.
            tokens_per_step: over all ranks, where it is constant (packed pretraining).
            sequence_length: tokens of each sequence, where it is constant: FLOPs and MFU follow from it.
            lasting_steps: whose checkpoints outlast newer ones, as the last of a stable schedule does.
            finish: changes the final model before it is written (merging an adapter, stop tokens).
        """
        arguments = trainer.args
        state, precision = AcceleratorState(), precision_of(arguments)
        launch = assert_launched_as_asked(state, precision, expected_processes)
        log = RunLog(
            self.output_dir, tokens_per_step, flops_of(trainer, sequence_length),
            plain_settings({"run_name": arguments.run_name, "launch": launch, "config": self.settings}),
        )  # fmt: skip
        prepare_callbacks(
            trainer,
            log,
            DurableCheckpoints(keep_checkpoints, **self._state_of(trainer), lasting_steps=lasting_steps),
            self.title,
        )
        is_main = trainer.is_world_process_zero()
        if is_main:
            if checkpoint is None or not (self.output_dir / RECORD_NAME).is_file():
                write_run_record(self.output_dir, self.settings, inputs=self.inputs, launch=launch)
            where = f"going on from {checkpoint.name}" if checkpoint else "from the start"
            words = launch_words(state, precision_in_force(trainer.model, arguments, engine_of(state)))
            console.print(f"[bold]{self.title}[/bold]: {where}; {words}")
            console.print(tracker_line(arguments))
        if checkpoint is not None:
            arguments.eval_on_start = False  # the log has it already; the guard knows of one that was put off
        start = time.perf_counter()
        train_watched(
            trainer, self.output_dir, checkpoint,
            lambda: self._write_final(trainer, finish, seconds=time.perf_counter() - start, log=log),
        )  # fmt: skip

    def _state_of(self, trainer: GuardedUpdates) -> dict[str, Any]:
        """What a checkpoint holds beside the model, what its manifest says of the run, and which one lasts."""
        order = read_order(self.output_dir)
        return {
            "save_state": lambda folder: save_training_state(trainer, folder),
            "facts": {"inputs": plain_settings(self.inputs), "sample_order": order and asdict(order)},
            "mark": lambda step, doing: trainer.guard.mark(step, doing),
        }

    def _write_final(
        self, trainer: GuardedUpdates, finish: Callable[[Trainer], None] | None, seconds: float, log: RunLog
    ) -> None:
        # An interrupted Trainer returns normally: only a run that took all its steps is final.
        if trainer.state.global_step < trainer.state.max_steps:
            raise FoundryError(
                f"{self.output_dir}: stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; "
                "run the same command again to go on"
            )
        trainer.refuse_non_finite_weights()
        if finish is not None:
            finish(trainer)
        restore_generation_cache(trainer.model)
        unfinished = self.output_dir / f".{MODEL_FOLDER}.tmp"
        if trainer.is_world_process_zero():
            shutil.rmtree(unfinished, ignore_errors=True)
        trainer.accelerator.wait_for_everyone()
        trainer.save_model(str(unfinished))
        trainer.guard.mark(trainer.state.global_step, "writing the final model, its own part done")
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            settle(unfinished)
            shutil.rmtree(self.model_folder, ignore_errors=True)
            unfinished.rename(self.model_folder)
            facts = {"steps": trainer.state.global_step, "seconds_this_process": round(seconds, 1)}
            facts |= {"training_seconds": round(log.clock.read(), 1), "model": model_hash(self.model_folder)}
            write_atomically(self.output_dir / COMPLETE_NAME, json.dumps(facts, indent=1) + "\n")


def prepare_callbacks(trainer: Trainer, log: RunLog, checkpoints: DurableCheckpoints, title: str) -> None:
    """Trainer's printing callbacks give way to one progress line and the run log."""
    trainer.args.save_total_limit = None
    trainer.args.save_only_model = True  # the rest is written by DurableCheckpoints, without pickles
    transformers.utils.logging.disable_progress_bar()  # a bar for each written file says nothing
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if isinstance(trainer, MeasuredSteps):
        trainer.run_log = log
    # The log comes after the seal of a checkpoint, which is part of its time, and before the trackers.
    trainer.add_callback(checkpoints)
    add_before_trackers(trainer, log)
    trainer.add_callback(ProgressLine(log, title))


def flops_of(trainer: Trainer, sequence_length: int | None) -> ModelFlops | None:
    """What MFU is reckoned with; None where sequences have no one length."""
    if sequence_length is None:
        return None
    arguments, model = trainer.args, trainer.model
    device = torch.cuda.get_device_name(arguments.device) if arguments.device.type == "cuda" else None
    precision = compute_precision(arguments, model)
    return model_flops(model.config.to_dict(), sequence_length, device, precision, arguments.world_size)


def restore_generation_cache(model: Any) -> None:
    """Trainer turns ``use_cache`` off for training; a saved model must generate with its cache."""
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.use_cache = True
