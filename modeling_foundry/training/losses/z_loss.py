"""The z-loss apart from the loss: what is logged as loss stays comparable with runs that have none."""

from __future__ import annotations

from typing import Any

import torch


class ZLoss:
    """Keeps the z-loss of a Trainer's steps, which logs ``loss`` without it and ``z_loss`` beside it.

    Both are means per token over the steps since the last line and over all ranks.  The model says how much of
    its loss is z-loss (``outputs.z_loss``); of a model that says nothing there is none.

    Args:
        total: of this rank since the last line, on the device: no sync inside a step; None where there is none.
        since_step: the step of the last line.
    """

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.since_step = 0
        self._share: torch.Tensor | None = None  # of the latest micro-batch

    @staticmethod
    def is_in(model: Any) -> bool:
        """Whether the model's loss holds a z-loss, by its configuration."""
        return bool(getattr(model.config, "z_loss_weight", 0.0))

    def begin(self, step: int) -> None:
        """A micro-batch of the step after ``step`` comes."""
        if self.total is None:
            self.since_step = step

    def note(self, outputs: Any) -> None:
        """What the forward pass said; kept as a share, because Trainer scales the loss in more than one place."""
        z_loss = None if outputs is None else outputs.get("z_loss")
        if z_loss is not None:
            self._share = z_loss / outputs["loss"].detach()

    def taken_out_of(self, loss: torch.Tensor) -> torch.Tensor:
        """The micro-batch's loss, as Trainer scaled it, without its z-loss."""
        if self._share is None:
            return loss
        z_loss, self._share = loss * self._share, None
        # A loss that is not finite shows as such; what it would be made of must not outlive its line.
        z_loss = torch.where(z_loss.isfinite(), z_loss, 0.0)
        self.total = z_loss if self.total is None else self.total + z_loss
        return loss - z_loss

    def logged(self, step: int, accelerator: Any) -> dict[str, float]:
        """For the line of ``step``: the mean over its steps and all ranks; the sum begins anew."""
        if self.total is None:
            return {}
        mean = accelerator.gather(self.total).mean().item() / (step - self.since_step)
        self.total = None
        return {"z_loss": mean}
