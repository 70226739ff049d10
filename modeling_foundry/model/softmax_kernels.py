"""Triton kernels of the chunked cross-entropy: loss and gradient of a chunk of logits in two reads and one write.

PyTorch's compiled softmax reads and writes a chunk more often; at 151,936 columns that is most of what the loss
costs beside its matrix products.  On a machine without Triton the loss takes the PyTorch path instead.

Shapes: T tokens of a chunk, V vocabulary.
"""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without it
    triton = None

BLOCK_COLUMNS = 4096


def softmax_kernels_serve(logits: Tensor) -> bool:
    """Whether the kernels can take these logits: on a CUDA device, fp32 or less, with Triton at hand."""
    fits = logits.is_cuda and logits.dtype != torch.float64
    return triton is not None and fits and not torch.compiler.is_compiling()


def softmax_cross_entropy_(
    logits: Tensor, targets: Tensor, scale: Tensor | None, z_loss_weight: float, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Losses and normalizers logsumexp (T) in fp32 of logits (T, V), overwritten with the gradient where wanted.

    Args:
        targets: (T) column of the label; any valid one where ``scale`` is 0.
        scale: (T) fp32, what each token's gradient is multiplied with; 0 for a token that does not count.  None
            where no gradient is wanted.
    """
    losses = torch.empty(len(logits), device=logits.device)
    normalizers = torch.empty_like(losses)
    _softmax_cross_entropy[(len(logits),)](
        logits, targets, losses if scale is None else scale, losses, normalizers, logits.shape[1],
        logits.stride(0), z_loss_weight, WRITES_GRADIENT=wants_gradient, BLOCK=BLOCK_COLUMNS, num_warps=8,
    )  # fmt: skip
    return losses, normalizers


if triton is not None:

    @triton.jit
    def _softmax_cross_entropy(
        logits, targets, scale, losses, normalizers, num_columns, stride, z_loss_weight,
        WRITES_GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        """One row a program: its maximum and sum of exponentials in one sweep, its gradient in a second."""
        row = tl.program_id(0).to(tl.int64)
        values = logits + row * stride
        columns = tl.arange(0, BLOCK)
        maximum = float("-inf")
        total = 0.0
        for start in range(0, num_columns, BLOCK):
            inside = start + columns < num_columns
            value = tl.load(values + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
            larger = tl.maximum(maximum, tl.max(value, 0))
            total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(value - larger), 0)
            maximum = larger
        normalizer = maximum + tl.log(total)
        target = tl.load(targets + row)
        at_target = tl.load(values + target).to(tl.float32)
        tl.store(losses + row, normalizer - at_target + z_loss_weight * normalizer * normalizer)
        tl.store(normalizers + row, normalizer)
        if WRITES_GRADIENT:
            tl.debug_barrier()  # every thread has read the target's logit before one overwrites it
            factor = tl.load(scale + row)
            slope = (1 + 2 * z_loss_weight * normalizer) * factor
            for start in range(0, num_columns, BLOCK):
                inside = start + columns < num_columns
                value = tl.load(values + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
                gradient = tl.exp(value - normalizer) * slope
                gradient = tl.where(start + columns == target, gradient - factor, gradient)
                tl.store(values + start + columns, gradient, mask=inside)
