"""Muon for matrices, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a weight
matrix by the nearest semi-orthogonal matrix.  ``torch.optim.Muon`` does the same but runs its
Newton-Schulz iteration in bfloat16, which a CPU without bfloat16 units does about 1.5 times slower than
float32, and it takes matrices only, while Trainer checkpoints exactly one optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..settings import FoundryError

# Quintic coefficients that maximise the slope at zero (Jordan et al. 2024).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrix: Tensor, num_iterations: int = 5) -> Tensor:
    """Newton-Schulz iteration towards ``U V^T`` of the singular value decomposition ``U S V^T``.

    Args:
        matrix: shape (rows, columns), any floating dtype.

    Returns:
        Same shape; float32 on CPU, bfloat16 on CUDA; singular values roughly in [0.7, 1.2].
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    is_tall = x.size(0) > x.size(1)
    x = x.mT if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(num_iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class MuonAdamW(torch.optim.Optimizer):
    """Groups with ``use_muon=True`` hold 2-D parameters and take Muon steps, the others AdamW steps.

    Args:
        params: parameter groups, each with the key ``use_muon``.
        lr: learning rate; Muon's update is scaled by sqrt(max(1, rows / columns)).
        momentum: Nesterov momentum of the Muon groups.
        betas, eps: of the AdamW groups.
        weight_decay: decoupled; of every group that does not set its own.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 0.02,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay,
            "use_muon": False,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            wrong = [tuple(p.shape) for p in group["params"] if group["use_muon"] and p.ndim != 2]
            if wrong:
                raise FoundryError(
                    f"optimizer muon: takes matrices only, found a parameter of shape {wrong[0]}"
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = self._muon_update if group["use_muon"] else self._adamw_update
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update(parameter, group), alpha=-group["lr"])
        return loss

    def _muon_update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer, gradient = state["momentum_buffer"], parameter.grad
        buffer.lerp_(gradient, 1 - group["momentum"])
        nesterov = gradient.lerp(buffer, group["momentum"])
        scale = math.sqrt(max(1.0, parameter.size(0) / parameter.size(1)))
        return orthogonalize(nesterov).to(parameter.dtype) * scale

    def _adamw_update(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        beta1, beta2 = group["betas"]
        gradient, step = parameter.grad, state["step"]
        step += 1
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        mean = state["exp_avg"] / (1 - beta1 ** step.item())
        variance = state["exp_avg_sq"] / (1 - beta2 ** step.item())
        return mean / (variance.sqrt() + group["eps"])


class MuonFactory:
    """What Trainer's ``optimizer_cls_and_kwargs`` takes for an optimizer that must see the model."""

    def __call__(
        self,
        model: nn.Module,
        lr: float,
        muon_lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float = 1e-8,
    ) -> MuonAdamW:
        """Matrices inside the layers go to Muon; embeddings, head, norms and biases to AdamW."""
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        muon = [p for name, p in named if p.ndim == 2 and ".layers." in f".{name}"]
        chosen = set(map(id, muon))
        adamw_matrices = [p for _, p in named if id(p) not in chosen and p.ndim >= 2]
        vectors = [p for _, p in named if p.ndim < 2]
        groups = [
            {"params": muon, "use_muon": True, "lr": muon_lr, "weight_decay": weight_decay},
            {"params": adamw_matrices, "lr": lr, "weight_decay": weight_decay},
            {"params": vectors, "lr": lr, "weight_decay": 0.0},
        ]
        return MuonAdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps)
