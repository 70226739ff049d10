"""The one class of Trainer hooks: guarded updates, checkpoints without pickles, measured steps.

Pretraining, SFT and DPO use it in front of transformers' or TRL's trainer.  What a hook does stands elsewhere (the
guard, the parts of a checkpoint, the log, reading ahead, the z-loss); here is when it happens.  Every private name of
the libraries that is overridden or read here stands in ``private_names``, with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from torch import nn
from transformers import Trainer

from ..settings import FoundryError
from .checkpoints.checkpoints import save_failures
from .checkpoints.model_weights import load_weights
from .checkpoints.parts import checkpoint_parts
from .log.run_log import RunLog
from .losses.z_loss import ZLoss
from .processes.endings import UpdateRefusedError
from .processes.loader_workers import leave_signals_to_the_rank
from .read_ahead import ReadAhead
from .safety.deepspeed_guard import DeepSpeedGuard
from .safety.update_guard import UpdateGuard

PICKLED_ARGUMENTS = "training_args.bin"


class FoundryTrainer(Trainer):
    """Trainer with a guard on every update, strict checkpoints and a run log.  Call :meth:`guard_updates` once."""

    args: Any
    guard: UpdateGuard
    is_applied: bool  # whether the newest update passed
    run_log: RunLog | None = None
    reads_ahead = False  # whether batches of the next step are read while the device works on this one

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.z_loss = ZLoss(self.model)
        self.read_ahead = ReadAhead(self) if self.reads_ahead else None

    def guard_updates(self, guard: UpdateGuard) -> None:
        """Let ``guard`` judge every update."""
        self.guard = guard
        self._loss_before_step: torch.Tensor | None = None
        self.is_applied = True
        self.add_callback(guard)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.add_callback(DeepSpeedGuard(self))

    # ------------------------------------------------------------------ data

    def get_train_dataloader(self) -> Any:
        return leave_signals_to_the_rank(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        return leave_signals_to_the_rank(super().get_eval_dataloader(*args, **kwargs))

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        batches = epoch_iterator if self.read_ahead is None else self.read_ahead.batches(epoch_iterator)
        return super().get_batch_samples(batches, num_batches, device)

    # ------------------------------------------------------------------ one step

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As Trainer's; the loss of a training micro-batch is kept on the device, without a sync."""
        answer = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        loss = answer[0] if return_outputs else answer
        if model.training:
            self._note_loss(loss.detach(), num_items_in_batch)
            if self.read_ahead is not None:
                self.read_ahead.one_more()
        else:
            self.guard.mark(self.state.global_step, "evaluating, a batch of its own done")
        return answer

    def _note_loss(self, loss: torch.Tensor, num_items_in_batch: Any) -> None:
        """For the guard's verdict: a micro-batch's loss by what Trainer divides it."""
        if not self.guard.losses:
            self._loss_before_step = self._tr_loss.clone()
        is_of_step = getattr(self, "loss_is_scaled_for_ga", None)  # transformers 5.19 and newer have it
        if is_of_step is None:
            is_of_step = num_items_in_batch is not None
        self.guard.losses.append(loss / (1 if is_of_step else self.current_gradient_accumulation_steps))
        self.guard.mark(self.state.global_step, "inside the backward pass of the next step")

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As Trainer's; what it returns is only logged, so the z-loss is taken out of it."""
        self.z_loss.begin(self.state.global_step)
        return self.z_loss.taken_out_of(super().training_step(*args, **kwargs))

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The only place where the norm is known and the update is still to come; None where it is refused."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self.run_log is not None:
            self.run_log.norms.add(norm)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            if self.is_applied and self.optimizer.step_was_skipped and not self.args.fp16:
                self.is_applied = False  # every element was finite, the norm is not
                self.guard.refuse_gradient(self, norm)
        else:
            # fp16 overflows on purpose while it looks for its loss scale, and skips those updates itself.
            self.is_applied = self.guard.applies(self, 0.0 if self.args.fp16 else norm)
            # Trainer asks this flag before it steps the scheduler; accelerate sets it for fp16 alone.
            self.optimizer._is_overflow = not self.is_applied
        if self.is_applied:
            return norm
        self._forget_step()
        return None

    def _forget_step(self) -> None:
        """Neither gradient nor loss of a refused update leaves a trace: the log shows means of applied ones."""
        self.optimizer.zero_grad()
        self._tr_loss.copy_(self._loss_before_step)
        self._globalstep_last_logged += 1
        self._initial_global_step += 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs |= self.z_loss.logged(self.state.global_step, self.accelerator)
        super().log(logs, *args, **kwargs)

    # ------------------------------------------------------------------ going on from a checkpoint

    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """No public place lies between "model and optimizer are wrapped" and "training begins"."""
        if resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, None)
        folder = Path(resume_from_checkpoint)
        self.state.compute_steps(self.args, max_steps)  # not the intervals of the stored run
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:  # else Trainer has loaded the weights already
            load_weights(self.model, folder)
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)
        for part in checkpoint_parts(self):
            part.load(folder)
        return prepared

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trainer looks for the end behind a step: resumed at the last one, it would take another."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Trainer's own goes on without a weight that is missing, and takes a pickle for want of safetensors."""
        model = self.model if model is None else model
        folder = Path(resume_from_checkpoint)
        if not hasattr(model, "peft_config"):
            return load_weights(model, folder)
        for path in folder.glob("*.bin"):
            raise FoundryError(f"{path}: a pickle, and checkpoints of ours hold none; remove it")
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Nothing: it is a pickle; ours comes back with ``random_state.RandomState``."""

    # ------------------------------------------------------------------ saving

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """The callbacks that complete a checkpoint come after this; DurableCheckpoints says the same of them."""
        self.refuse_non_finite_weights()
        with save_failures(Path(self.args.output_dir)):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Trainer pickles its arguments beside the model; nobody needs that, and a kill must leave no token in it."""
        arguments = self.args
        self.args = copy.copy(arguments)
        self.args.hub_token = None
        if self.is_deepspeed_enabled and self.accelerator.unwrap_model(self.model_wrapped) is not self.model:
            state_dict = None  # DeepSpeed's is of the model with its adapter, and this one has it merged
        try:
            super()._save(output_dir, state_dict)
        finally:
            self.args = arguments
        if self.args.should_save:
            (Path(output_dir or self.args.output_dir) / PICKLED_ARGUMENTS).unlink(missing_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: of a model in a folder TRL's says "a fine-tuned version of None"; the card is publishing's."""

    def refuse_non_finite_weights(self) -> None:
        """Called by every rank before weights are saved: a sound loss and gradient can still overflow one.

        Raises:
            UpdateRefusedError: on every rank alike.
        """
        parts = (
            (name, getattr(weight, "_local_tensor", weight)) for name, weight in self.model.named_parameters()
        )
        bad = [name for name, part in parts if not part.isfinite().all()]
        if names := [name for of_rank in gather_object([bad[:1]]) for name in of_rank]:
            raise UpdateRefusedError(
                f"{self.args.output_dir}: step {self.state.global_step}: {names[0]} is not finite, though loss and "
                "gradient were; nothing of this step is saved. Lower learning_rate and start again",
                self.state.global_step - 1,
            )
