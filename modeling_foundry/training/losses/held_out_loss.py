"""The held-out loss as a sum over what it is a mean of, divided once, over all batches and ranks.

Trainer takes the mean of the batches' means, which changes with the size of an evaluation batch and the number of
ranks; the best checkpoint is chosen by it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from ...model.losses import IGNORE_INDEX
from .repeated_samples import without_repeated_labels


def num_learned(labels: Tensor) -> Tensor:
    """How many tokens of ``labels`` (…, S) are predicted by another: the first of a row is by none."""
    return (labels[..., 1:] != IGNORE_INDEX).sum()


class LossSums:
    """Sums and counts of the parts of a loss, each a mean of its own; on the device, without a sync."""

    def __init__(self) -> None:
        self._parts: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}

    def add(self, part: str, total: Tensor, count: Tensor | float, weight: float = 1.0) -> None:
        """What a batch adds to one part.

        Args:
            total: summed loss; not read where ``count`` is 0, so it may be the mean of nothing there.
            count: of what the part is a mean: tokens or pairs.
            weight: of the part in the whole loss.
        """
        count = torch.as_tensor(count, device=total.device, dtype=torch.float64)
        both = torch.stack([torch.where(count > 0, total.detach().double(), 0.0), count])
        self._parts[part] = both + self._parts.get(part, 0.0)
        self._weights[part] = weight

    def mean(self, accelerator: Any) -> float:
        """The whole loss over all ranks; not a number where nothing was counted.  Every rank calls it."""
        parts = sorted(self._parts)
        sums = accelerator.reduce(torch.stack([self._parts[part] for part in parts]), "sum").tolist()
        return sum(
            self._weights[part] * (total / count if count else float("nan"))
            for part, (total, count) in zip(parts, sums, strict=True)
        )


class HeldOutLoss(Trainer):
    """Mix-in for a Trainer: ``eval_loss`` is what :attr:`held_out` was given, summed and divided once."""

    args: Any
    held_out: LossSums

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """``dataloader_drop_last`` is for training: without the last samples a loss changes with the batch."""
        arguments: Any = self.args
        self.args = copy.copy(arguments)
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args = arguments

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        self.held_out = LossSums()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_loss"] = self.held_out.mean(self.accelerator)
        return output


class HeldOutTokens(HeldOutLoss):
    """For batches with ``labels`` and a loss that is a mean over their tokens."""

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor, None, None]:
        inputs = without_repeated_labels(self, self._prepare_inputs(inputs), self.args.eval_batch_size)
        count = num_learned(inputs["labels"])
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        self.held_out.add("tokens", loss * count, count)
        return loss.detach(), None, None
