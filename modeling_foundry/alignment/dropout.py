"""Dropout that TRL's ``disable_dropout`` passes over: attention's, a number in most models and no module."""

from __future__ import annotations

from torch import nn


def silence_attention_dropout(model: nn.Module) -> None:
    """No attention weight is dropped from here on; ``config.json`` keeps the number for later runs."""
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
