"""One training run from start, or from where it was, to its end: shared by pretrain, SFT and DPO."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import AcceleratorState
from rich.text import Text
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from ..data.sequences.sample_order import read_order
from ..files import model_hash, settle, write_atomically
from ..run_record import RECORD_NAME, plain_settings, write_run_record
from ..settings import FoundryError
from ..terminal import console
from .checkpoints.checkpoints import DurableCheckpoints
from .checkpoints.parts import checkpoint_parts
from .log.progress import ProgressLine
from .log.run_log import RunLog
from .log.throughput import ModelFlops, model_flops
from .log.trackers import add_before_trackers, tracker_line
from .plan import RunPlan
from .precision import compute_precision, precision_in_force
from .processes.launch import assert_launched_as_asked, engine_of, launch_words
from .run_folder import COMPLETE_NAME, MODEL_FOLDER, RunFolder
from .trainer import FoundryTrainer
from .watch import refuse_to_finish, watched

logger = logging.getLogger(__name__)


class TrainingSession(RunFolder):
    """A run folder and what is meant to happen in it."""

    def train(
        self,
        trainer: FoundryTrainer,
        plan: RunPlan,
        checkpoint: Path | None,
        keep_checkpoints: int,
        expected_processes: int | None,
        finish: Callable[[Trainer], None] | None = None,
        out_of_memory_advice: str | None = None,
    ) -> None:
        """Train to the end, from ``checkpoint`` on, and write the final model.

        Args:
            checkpoint: what :meth:`resume_point` said; None starts anew.
            finish: changes the final model before it is written (merging an adapter, stop tokens).
            out_of_memory_advice: what to change when a training step does not fit the device.
        """
        state = AcceleratorState()
        launch = assert_launched_as_asked(state, plan.precision, expected_processes)
        facts = {"run_name": trainer.args.run_name, "launch": launch, "config": self.settings}
        flops = flops_of(trainer, plan)
        log = RunLog(self.output_dir, plan.tokens_per_step, flops, plain_settings(facts))
        prepare_callbacks(trainer, log, self._checkpoints(trainer, plan, keep_checkpoints), self.title)
        if trainer.is_world_process_zero():
            if checkpoint is None or not (self.output_dir / RECORD_NAME).is_file():
                record = {"inputs": self.inputs, "launch": launch, "plan": plain_settings(plan.record())}
                write_run_record(self.output_dir, self.settings, **record)
            where = f"going on from {checkpoint.name}" if checkpoint else "from the start"
            words = launch_words(state, precision_in_force(trainer.model, trainer.args, engine_of(state)))
            console.print(Text.assemble((self.title, "bold"), f": {where}; {words}"))
            console.print(tracker_line(trainer.args))
        start = time.perf_counter()
        with watched(trainer, self.output_dir) as heartbeat:
            try:
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            except torch.OutOfMemoryError as error:
                raise FoundryError(out_of_memory(trainer, out_of_memory_advice)) from error
            refuse_to_finish(trainer, self.output_dir)
            heartbeat.mark(trainer.state.global_step, "writing the final model")
            self._write_final(trainer, finish, seconds=time.perf_counter() - start, log=log)

    def _checkpoints(self, trainer: FoundryTrainer, plan: RunPlan, keep: int) -> DurableCheckpoints:
        """The callback that writes every part of a checkpoint and then its seal; the end of the stable part lasts."""
        order, stable = read_order(self.output_dir), plan.last_stable_step
        return DurableCheckpoints(
            keep,
            checkpoint_parts(trainer),
            facts={"inputs": plain_settings(self.inputs), "sample_order": order and asdict(order)},
            lasting_steps=[] if stable is None else [stable],
            mark=lambda step, doing: trainer.guard.mark(step, doing),
        )

    def _write_final(
        self, trainer: FoundryTrainer, finish: Callable[[Trainer], None] | None, seconds: float, log: RunLog
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


def prepare_callbacks(
    trainer: FoundryTrainer, log: RunLog, checkpoints: DurableCheckpoints, title: str
) -> None:
    """Trainer's printing callbacks give way to one progress line and the run log."""
    transformers.utils.logging.disable_progress_bar()  # a bar for each written file says nothing
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.run_log = log
    # The log comes after the seal of a checkpoint, which is part of its time, and before the trackers.
    trainer.add_callback(checkpoints)
    add_before_trackers(trainer, log)
    trainer.add_callback(ProgressLine(log, title))


def out_of_memory(trainer: Trainer, advice: str | None) -> str:
    """One line for a device that ran out of memory: which batch it was, and what to change."""
    arguments = trainer.args
    if not trainer.model.training:
        size = arguments.per_device_eval_batch_size
        return f"per_device_eval_batch_size: {size} ran out of memory in an evaluation; give fewer"
    return advice or (
        f"per_device_train_batch_size: {arguments.per_device_train_batch_size} samples ran out of memory; give fewer, "
        "a smaller max_length, or gradient_checkpointing: true"
    )


def flops_of(trainer: Trainer, plan: RunPlan) -> ModelFlops | None:
    """What MFU is reckoned with; None where sequences have no one length."""
    if plan.sequence_length is None:
        return None
    arguments, model = trainer.args, trainer.model
    device = torch.cuda.get_device_name(arguments.device) if arguments.device.type == "cuda" else None
    precision = compute_precision(arguments, model)
    return model_flops(model.config.to_dict(), plan.sequence_length, device, precision, arguments.world_size)


def restore_generation_cache(model: Any) -> None:
    """Trainer turns ``use_cache`` off for training; a saved model must generate with its cache."""
    model.config.use_cache = True
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.use_cache = True
