"""Gradient statistics that are measured: norms of every step, sizes by layer on the steps that are logged.

Nothing here waits for the device inside a step: norms stay there until a log line is written, which Trainer
makes wait for the loss anyway.
"""

from __future__ import annotations

import re
from typing import Any

import torch

LAYER_PATTERN = re.compile(r"(?:^|\.)layers\.(\d+)\.")
CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_


class GradientNorms:
    """Norms before clipping of the steps since the last log line.

    Args:
        max_norm: what gradients are clipped to; 0 is no clipping.
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm
        self._norms: list[torch.Tensor | float] = []

    def add(self, norm: torch.Tensor | float | None) -> None:
        """The global norm of one step, before clipping; None (an engine that tells none) is left out."""
        if norm is not None:
            # A copy: a captured graph writes its norm to the same place each step.
            self._norms.append(norm.detach().clone() if isinstance(norm, torch.Tensor) else float(norm))

    def newest_coefficient(self) -> torch.Tensor | float:
        """What the newest step's gradients were multiplied with; stays on the device."""
        return self._coefficient(self._norms[-1]) if self._norms else 1.0

    def numbers(self) -> list[float]:
        """Every norm since the last line, in order; every rank calls it, as :func:`_whole` may need them."""
        tensors = [_whole(norm).float().reshape(()) for norm in self._norms if isinstance(norm, torch.Tensor)]
        on_device = iter(torch.stack(tensors).tolist() if tensors else [])
        return [next(on_device) if isinstance(norm, torch.Tensor) else norm for norm in self._norms]

    def take(self) -> dict[str, float]:
        """Mean and largest norm, the newest clip coefficient and the share of clipped steps; then starts anew."""
        if not self._norms:
            return {}
        norms, self._norms = self.numbers(), []
        clipped = [self.max_norm > 0 and norm > self.max_norm for norm in norms]
        return {
            "grad_norm_mean": sum(norms) / len(norms),
            "grad_norm_max": max(norms),
            "clip_coefficient": float(self._coefficient(norms[-1])),
            "clipped_share": sum(clipped) / len(clipped),
        }

    def _coefficient(self, norm: Any) -> Any:
        if self.max_norm <= 0:
            return 1.0
        coefficient = self.max_norm / (norm + CLIP_EPSILON)
        return coefficient.clamp(max=1.0) if isinstance(norm, torch.Tensor) else min(1.0, coefficient)


def _whole(norm: torch.Tensor) -> torch.Tensor:
    """FSDP2 may give a norm in parts; every rank writes its line, so every rank takes part in this sum."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


class GradientSizes:
    """Norm of each decoder layer's gradient and the largest element of all, before clipping.

    Two passes over the gradients, on logged steps only.  For a rank that holds whole gradients: DeepSpeed frees
    them in its step and FSDP shards them.
    """

    def __init__(self) -> None:
        self._layers: torch.Tensor | None = None
        self._largest: torch.Tensor | None = None

    def measure(self, model: torch.nn.Module, norms: GradientNorms) -> None:
        """Read ``.grad`` of every parameter and undo the clipping that ``norms`` tells of."""
        self._layers = self._largest = None
        named = [(name, p.grad) for name, p in model.named_parameters() if p.grad is not None]
        if not named or any(hasattr(grad, "full_tensor") for _, grad in named):
            return
        coefficient = norms.newest_coefficient()
        layers: dict[int, list[torch.Tensor]] = {}
        for name, grad in named:
            if match := LAYER_PATTERN.search(name):
                layers.setdefault(int(match.group(1)), []).append(grad)
        norm = torch.nn.utils.get_total_norm
        if layers:
            self._layers = (
                torch.stack([norm(layers[layer]).float() for layer in sorted(layers)]) / coefficient
            )
        self._largest = norm([grad for _, grad in named], norm_type=float("inf")).float() / coefficient

    def take(self) -> dict[str, Any]:
        """``grad_max_abs`` and ``grad_layer_norms`` (first layer first) of the step measured; then starts anew."""
        sizes: dict[str, Any] = {}
        if self._largest is not None:
            sizes["grad_max_abs"] = self._largest.item()
        if self._layers is not None:
            norms = self._layers.tolist()
            sizes |= {"grad_layer_norm_min": min(norms), "grad_layer_norm_max": max(norms)}
            sizes["grad_layer_norms"] = norms
        self._layers = self._largest = None
        return sizes
