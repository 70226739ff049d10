"""Where the guard's verdict enters transformers' Trainer."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import DistributedType, gather_object
from transformers import Trainer

from ..settings import FoundryError
from .deepspeed_guard import DeepSpeedGuard
from .loader_workers import leave_signals_to_the_rank
from .run_end import UpdateRefusedError
from .update_guard import UpdateGuard


class GuardedUpdates(Trainer):
    """Mix-in for a Trainer: every update passes :class:`UpdateGuard`.  Call :meth:`guard_updates` once."""

    guard: UpdateGuard
    is_applied: bool  # whether the newest update passed

    def guard_updates(self, guard: UpdateGuard) -> None:
        """Let ``guard`` judge every update.

        Raises:
            FoundryError: a setting that would hide what the guard looks for.
        """
        if self.args.logging_nan_inf_filter:
            raise FoundryError("logging_nan_inf_filter: would log a mean in place of NaN; leave it out")
        self.guard = guard
        self._loss_before_step: torch.Tensor | None = None
        self.is_applied = True
        self.add_callback(guard)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.add_callback(DeepSpeedGuard(self))

    def get_train_dataloader(self) -> Any:
        return leave_signals_to_the_rank(super().get_train_dataloader())

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        # Trainer's drop_last is one for both; of held-out samples none is dropped.
        drops, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return leave_signals_to_the_rank(super().get_eval_dataloader(*args, **kwargs))
        finally:
            self.args.dataloader_drop_last = drops

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """As Trainer's; the loss of a training micro-batch is kept on the device, without a sync."""
        answer = super().compute_loss(model, inputs, *args, **kwargs)
        if model.training:
            loss = (answer[0] if isinstance(answer, tuple) else answer).detach()
            if not self.guard.losses:
                self._loss_before_step = self._tr_loss.clone()
            self.guard.losses.append(loss / self._num_parts(kwargs.get("num_items_in_batch")))
            self.guard.mark(self.state.global_step, "inside the backward pass of the next step")
        else:
            self.guard.mark(self.state.global_step, "evaluating, a batch of its own done")
        return answer

    def _num_parts(self, num_items_in_batch: Any) -> int:
        """By what Trainer divides a micro-batch's loss: the accumulation steps, unless it is of the whole step."""
        is_of_step = self.loss_is_scaled_for_ga
        if is_of_step is None:
            is_of_step = num_items_in_batch is not None
        return 1 if is_of_step else self.current_gradient_accumulation_steps

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Trainer's only place where the norm is known and the update is still to come; no public hook has it."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.refuse_non_finite_weights()
        super()._save_checkpoint(model, trial)

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

    def _forget_step(self) -> None:
        """Neither gradient nor loss of a refused update leaves a trace: the log shows means of applied ones."""
        self.optimizer.zero_grad()
        self._tr_loss.copy_(self._loss_before_step)
        self._globalstep_last_logged += 1
        self._initial_global_step += 1
