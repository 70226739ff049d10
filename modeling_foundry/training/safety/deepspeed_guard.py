"""Where the guard's verdict enters DeepSpeed's optimizers."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...settings import FoundryError
from .update_guard import UpdateGuard


class Guarded(Protocol):
    """What is asked of a trainer here; ``is_applied`` is where the verdict on the newest update is left."""

    args: Any
    guard: UpdateGuard
    is_applied: bool


class DeepSpeedGuard(TrainerCallback):
    """DeepSpeed updates at the end of the last backward; its overflow check is where an update can be refused."""

    def __init__(self, trainer: Guarded) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        zero = kwargs["optimizer"].optimizer
        if hasattr(zero, "has_overflow") and hasattr(zero, "check_grad_overflow"):
            guard_zero_1_and_2(self.trainer, zero)
        elif hasattr(zero, "clear_hp_grads") and hasattr(zero, "clear_lp_grads"):
            guard_bf16_optimizer(self.trainer, zero)
        else:
            raise FoundryError(
                f"deepspeed: {type(zero).__name__} applies its updates unchecked; use zero_stage 1 or 2"
            )


def guard_zero_1_and_2(trainer: Guarded, zero: Any) -> None:
    """ZeRO drops the gradients and keeps every state when its overflow check says so, on all ranks.

    Its own check launches some thousand small kernels and waits for the device; but where it must tell a loss
    scale from a fault (fp16), or the gradients are in host memory, the norm of this rank's part in one pass says
    the same.
    """
    has_overflow = zero.has_overflow
    zero.check_grad_overflow = True  # off by default in fp32, and a switch in bf16

    def refused(partition_gradients: bool = True) -> bool:
        if not trainer.args.fp16 and not zero.cpu_offload:
            trainer.is_applied = trainer.guard.applies(trainer, _norm_of_part(zero))
            return not trainer.is_applied
        overflows = has_overflow(partition_gradients)
        norm = float("inf") if overflows and not trainer.args.fp16 else 0.0
        trainer.is_applied = trainer.guard.applies(trainer, norm)
        return not trainer.is_applied or overflows

    zero.has_overflow = refused


def _norm_of_part(zero: Any) -> torch.Tensor:
    """Norm of the averaged gradients that this rank updates; stays on the device."""
    groups = zero.averaged_gradients.values()
    return torch.nn.utils.get_total_norm([grad for group in groups for grad in group if grad is not None])


def guard_bf16_optimizer(trainer: Guarded, zero: Any) -> None:
    """bf16 with fp32 accumulation: it refuses a norm that is not finite itself, so only the loss is left to ask."""
    step = zero.step

    def guarded_step(closure: Any = None) -> None:
        trainer.is_applied = trainer.guard.applies(trainer, 0.0)
        if trainer.is_applied:
            step(closure)
            return
        zero.overflow, zero._global_grad_norm = True, float("inf")
        zero.clear_hp_grads()
        zero.clear_lp_grads()

    zero.step = guarded_step
