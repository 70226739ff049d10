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
TILE = 64
# e5m2 holds numbers up to 57,344; the gradient of a logit is at most about 1 in size before it is averaged.
FLOAT8_GRADIENT_SCALE = 28_672.0


def softmax_kernels_serve(logits: Tensor) -> bool:
    """Whether the kernels can take these logits: on a CUDA device, fp32 or less, with Triton at hand."""
    fits = logits.is_cuda and logits.dtype != torch.float64
    return triton is not None and fits and not torch.compiler.is_compiling()


def softmax_cross_entropy_(
    logits: Tensor, targets: Tensor, scale: Tensor, z_loss_weight: float, wants_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Losses and normalizers logsumexp (T) in fp32 of logits (T, V), overwritten with the gradient where wanted.

    Args:
        targets: (T) column of the label; any valid one where ``scale`` is 0.
        scale: (T) fp32, what each token's gradient is multiplied with; 0 for a token that does not count.
    """
    losses = torch.empty(len(logits), device=logits.device)
    normalizers = torch.empty_like(losses)
    _softmax_cross_entropy[(len(logits),)](
        logits, targets, scale, losses, normalizers, logits.shape[1], logits.stride(0), z_loss_weight,
        WRITES_GRADIENT=wants_gradient, BLOCK=BLOCK_COLUMNS, num_warps=8,
    )  # fmt: skip
    return losses, normalizers


def float8_softmax_gradient(
    logits: Tensor, targets: Tensor, counts: Tensor, z_loss_weight: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and normalizers (T) in fp32, and the summed loss's gradient in e5m2, as rows (T, V) and columns (V, T).

    The gradient is multiplied with ``FLOAT8_GRADIENT_SCALE`` so that small probabilities do not vanish: a fixed
    number, since the gradient of a logit is bounded.  Both layouts are written because fp8 matrix products take
    their operands in one layout only.
    """
    num_tokens, num_columns = logits.shape
    losses = torch.empty(num_tokens, device=logits.device)
    normalizers = torch.empty_like(losses)
    _softmax_cross_entropy[(num_tokens,)](
        logits, targets, losses, losses, normalizers, num_columns, logits.stride(0), z_loss_weight,
        WRITES_GRADIENT=False, BLOCK=BLOCK_COLUMNS, num_warps=8,
    )  # fmt: skip
    rows = torch.empty(num_tokens, num_columns, dtype=torch.float8_e5m2, device=logits.device)
    columns = torch.empty(num_columns, num_tokens, dtype=torch.float8_e5m2, device=logits.device)
    grid = (triton.cdiv(num_columns, 2 * TILE), triton.cdiv(num_tokens, TILE))
    _float8_gradient[grid](
        logits, targets, counts, normalizers, rows, columns, num_tokens, num_columns, logits.stride(0),
        z_loss_weight, FLOAT8_GRADIENT_SCALE, TOKENS=TILE, COLUMNS=2 * TILE, num_warps=4,
    )  # fmt: skip
    return losses, normalizers, rows, columns


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

    @triton.jit
    def _float8_gradient(
        logits, targets, counts, normalizers, rows, columns, num_tokens, num_columns, stride,
        z_loss_weight, float8_scale, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """One tile a program: p - onehot, scaled, in fp8, stored as it is and transposed."""
        token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        is_token, is_column = token < num_tokens, column < num_columns
        inside = is_token[:, None] & is_column[None, :]
        row_start = token.to(tl.int64)[:, None]
        value = tl.load(logits + row_start * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        normalizer = tl.load(normalizers + token, mask=is_token, other=0.0)
        target = tl.load(targets + token, mask=is_token, other=-1)
        count = tl.load(counts + token, mask=is_token, other=0).to(tl.float32)
        slope = 1 + 2 * z_loss_weight * normalizer
        gradient = tl.exp(value - normalizer[:, None]) * slope[:, None]
        gradient = tl.where(column[None, :] == target[:, None], gradient - 1, gradient)
        scaled = (gradient * (count * float8_scale)[:, None]).to(tl.float8e5)
        tl.store(rows + row_start * num_columns + column[None, :], scaled, mask=inside)
        transposed = columns + column.to(tl.int64)[:, None] * num_tokens + token[None, :]
        tl.store(transposed, tl.trans(scaled), mask=is_column[:, None] & is_token[None, :])
