"""fp8 training: torchao's float8 matrix products in the layers, and an fp8 output head of our own.

Weights, activations between layers, gradients and the optimizer keep their dtype; only the operands of the big
matrix products are rounded to fp8, scaled tensor by tensor (Micikevicius et al. 2022, arXiv:2209.05433).  torchao's
head would need the whole logits; here the chunked cross-entropy rounds its own operands, and the gradient of the
logits goes to e5m2 with a fixed scale because it is bounded.

Shapes: T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..settings import FoundryError
from .float8_kernels import GRADIENT_SCALE, float8_softmax_gradient, to_float8
from .losses import IGNORE_INDEX
from .modeling_foundry import FoundryForCausalLM, FoundryHead

ROWS_MULTIPLE = 16  # fp8 matrix products take sizes in multiples of 16


def convert_to_float8(model: FoundryForCausalLM, sequence_length: int) -> None:
    """Let the layers' linear maps and the head multiply in fp8 from now on, in training only.

    Names, shapes and dtypes of the parameters stay, so checkpoints are those of any other run.

    Raises:
        FoundryError: no torchao, no GPU with fp8 units, or a size that fp8 products cannot take.
    """
    refuse_float8(model, sequence_length)
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    recipe = Float8LinearConfig.from_recipe_name("tensorwise")
    convert_to_float8_training(model.model.layers, config=recipe)
    model.lm_head.__class__ = Float8Head


def refuse_float8(model: FoundryForCausalLM, sequence_length: int) -> None:
    """Raise FoundryError with what is missing for fp8 training here."""
    device = model.device
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        raise FoundryError(
            f"float8: needs a GPU with fp8 units (Hopper, Ada, Blackwell), not {device}; give --float8=false"
        )
    try:
        import torchao.float8  # noqa: F401
    except ImportError as error:
        raise FoundryError("float8: needs torchao, pip install 'modeling-foundry[float8]'") from error
    sizes = {"sequence_length": sequence_length, "vocab_size": model.config.vocab_size}
    sizes |= {name: getattr(model.config, name) for name in ("hidden_size", "intermediate_size")}
    for name, size in sizes.items():
        if size % ROWS_MULTIPLE:
            raise FoundryError(f"{name}: float8 needs a multiple of {ROWS_MULTIPLE}, found {size}")


class Float8Head(FoundryHead):
    """The output head whose training loss multiplies in fp8; everything else is the plain head's."""

    def forward(self, hidden_states: Tensor, labels: Tensor | None = None, **options: Any) -> Any:
        if labels is None or not torch.is_grad_enabled():
            return super().forward(hidden_states, labels, **options)
        return float8_linear_cross_entropy(hidden_states, self.weight, labels, **options)


def float8_linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    chunk_tokens: int = 8192,
    z_loss_weight: float = 0.0,
    return_z_loss: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`~modeling_foundry.model.losses.linear_cross_entropy` with its three products in fp8.

    Args:
        hidden_states: (…, H) in bf16 or fp32, the number of tokens a multiple of 16.
        weight: (V, H).
        labels: (…) token ids, already shifted.

    Returns:
        Scalar loss in fp32; with ``return_z_loss`` also the part of it that is z-loss.
    """
    labels = labels.flatten()
    if num_items_in_batch is None:
        num_items_in_batch = (labels != ignore_index).sum()
    denominator = torch.as_tensor(num_items_in_batch, device=labels.device, dtype=torch.float32)
    chunk_tokens = max(ROWS_MULTIPLE, chunk_tokens // ROWS_MULTIPLE * ROWS_MULTIPLE)
    loss, z_loss = _Float8LinearCrossEntropy.apply(
        hidden_states.flatten(0, -2), weight, labels, denominator, ignore_index, chunk_tokens, z_loss_weight
    )
    return (loss, z_loss) if return_z_loss else loss


class _Float8LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients chunk by chunk in the forward pass, as in :mod:`modeling_foundry.model.losses`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,
        weight: Tensor,
        labels: Tensor,
        denominator: Tensor,
        ignore_index: int,
        chunk_tokens: int,
        z_loss_weight: float,
    ) -> tuple[Tensor, Tensor]:
        head, head_columns, head_scale = to_float8(weight)
        gradient_scale = 1 / (GRADIENT_SCALE * denominator)
        loss, z_loss = torch.zeros((), device=weight.device), torch.zeros((), device=weight.device)
        hidden_gradient = torch.empty_like(hidden_states)
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(labels), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            hidden, hidden_columns, hidden_scale = to_float8(hidden_states[rows])
            # Fast accumulation keeps 14 bits between steps of a product: enough over H, not over T or V.
            logits = product(hidden, head.t(), hidden_scale, head_scale, fast=True)
            counts = labels[rows] != ignore_index
            targets = torch.where(counts, labels[rows], 0)
            losses, normalizers, by_rows, by_columns = float8_softmax_gradient(
                logits, targets, counts, z_loss_weight
            )
            del logits
            loss += torch.where(counts, losses, 0.0).sum() / denominator
            z_losses = z_loss_weight * normalizers.square()
            z_loss += torch.where(counts, z_losses, 0.0).sum() / denominator
            hidden_gradient[rows] = product(by_rows, head_columns.t(), gradient_scale, head_scale)
            weight_gradient += product(by_columns, hidden_columns.t(), gradient_scale, hidden_scale)
            del by_rows, by_columns  # or they would live while the next chunk's logits are made
        ctx.save_for_backward(hidden_gradient, weight_gradient.to(weight.dtype))
        ctx.mark_non_differentiable(z_loss)
        return loss, z_loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple:
        gradients = [saved * loss_gradient.to(saved.dtype) for saved in ctx.saved_tensors]
        return (*gradients, None, None, None, None, None)


def product(
    left: Tensor, right: Tensor, left_scale: Tensor, right_scale: Tensor, fast: bool = False
) -> Tensor:
    """(M, K) row-major times (K, N) column-major, both fp8, in bf16."""
    return torch._scaled_mm(
        left, right, left_scale, right_scale, out_dtype=torch.bfloat16, use_fast_accum=fast
    )
