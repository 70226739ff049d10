"""The z-loss apart from the loss: what is logged as loss stays comparable with runs that have none."""

from __future__ import annotations

from typing import Any

import torch


class ZLoss:
    """Keeps the z-loss of a Trainer's steps, which logs ``loss`` without it and ``z_loss`` beside it.

    Both are means per token over the steps since the last line and over all ranks.  The model says how much of
    its loss is z-loss (``outputs.z_loss``); of a model that says nothing there is none.

    Args:
        model: the trained one, unwrapped; it is listened to right behind its forward pass, because Trainer scales
            the loss in its outputs in place by the number of ranks.
        total: of this rank since the last line, on the device: no sync inside a step; None where there is none.
        since_step: the step of the last line.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.total: torch.Tensor | None = None
        self.since_step = 0
        self._share: torch.Tensor | None = None  # of the latest micro-batch
        if getattr(model.config, "z_loss_weight", 0.0):
            model.register_forward_hook(lambda module, inputs, outputs: self._note(outputs))

    def begin(self, step: int) -> None:
        """A micro-batch of the step after ``step`` comes."""
        if self.total is None:
            self.since_step = step

    def _note(self, outputs: Any) -> None:
        """What a forward pass said; kept as a share, because Trainer scales the loss in more than one place."""
        if outputs.get("z_loss") is not None:
            self._share = outputs["z_loss"] / outputs["loss"].detach()

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
