"""The z-loss apart from the loss: what is logged as loss stays comparable with runs that have none."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer


class ZLossReport(Trainer):
    """Mix-in for a Trainer: ``loss`` is logged without the z-loss, and ``z_loss`` beside it.

    Both are means per token over the steps since the last line and over all ranks.  The model says how much of
    its loss is z-loss (``outputs.z_loss``); a model that says nothing is logged as ever.
    """

    _z_share: torch.Tensor | None = None  # of the latest micro-batch
    _z_total: torch.Tensor | None = None  # since the last line, on the device: no sync inside a step
    _z_last_logged: int = 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(
            model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        z_loss = outputs.get("z_loss")
        if z_loss is not None:  # a share, because Trainer scales the loss in more than one place
            self._z_share = z_loss / outputs["loss"].detach()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As Trainer's; what it returns is only logged, so the z-loss is taken out of it here."""
        if self._z_total is None:
            self._z_last_logged = self.state.global_step
        loss = super().training_step(*args, **kwargs)
        if self._z_share is None:
            return loss
        z_loss, self._z_share = loss * self._z_share, None
        # A loss that is not finite shows as such; what it would be made of must not outlive its line.
        z_loss = torch.where(z_loss.isfinite(), z_loss, 0.0)
        self._z_total = z_loss if self._z_total is None else self._z_total + z_loss
        return loss - z_loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._z_total is not None:
            steps = self.state.global_step - self._z_last_logged
            logs["z_loss"] = self.accelerator.gather(self._z_total).mean().item() / steps
            self._z_total = None
        super().log(logs, *args, **kwargs)
