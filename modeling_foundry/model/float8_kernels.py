"""Triton kernels that round to fp8 and write the result twice, by rows and by columns.

A matrix product in fp8 takes its left operand by rows and its right one by columns, and every tensor of a linear map is
left in one product and right in another.  Rounding and transposing in one pass reads the tensor once.

Shapes: T tokens of a chunk, V vocabulary, R rows, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .softmax_kernels import softmax_cross_entropy_

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU builds of PyTorch come without it
    triton = None

TILE_ROWS, TILE_COLUMNS = 64, 128
E4M3_MAX = torch.finfo(torch.float8_e4m3fn).max
# e5m2 holds numbers up to 57,344; the gradient of a logit is at most about 1 in size before it is averaged.
GRADIENT_SCALE = 28_672.0


def to_float8(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(R, C) in e4m3 by rows (R, C) and by columns (C, R), and the fp32 scalar that undoes the scaling.

    The value largest in size becomes e4m3's largest.
    """
    low, high = torch.aminmax(values)
    scale = torch.maximum(-low, high).float().clamp(min=1e-12) / E4M3_MAX
    num_rows, num_columns = values.shape
    rows = torch.empty(num_rows, num_columns, dtype=torch.float8_e4m3fn, device=values.device)
    columns = torch.empty(num_columns, num_rows, dtype=torch.float8_e4m3fn, device=values.device)
    _round_to_float8[_tiles(num_rows, num_columns)](
        values, scale, rows, columns, num_rows, num_columns,
        ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS, num_warps=4,
    )  # fmt: skip
    return rows, columns, scale


def float8_softmax_gradient(
    logits: Tensor, targets: Tensor, counts: Tensor, z_loss_weight: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses and normalizers (T) in fp32; the gradient of their sum in e5m2 by rows (T, V) and by columns (V, T).

    The gradient is multiplied with ``GRADIENT_SCALE`` so that small probabilities do not vanish: a fixed
    number, since the gradient of a logit is bounded.  Both layouts are written because fp8 matrix products take
    their operands in one layout only.
    """
    num_tokens, num_columns = logits.shape
    losses, normalizers = softmax_cross_entropy_(logits, targets, None, z_loss_weight, wants_gradient=False)
    rows = torch.empty(num_tokens, num_columns, dtype=torch.float8_e5m2, device=logits.device)
    columns = torch.empty(num_columns, num_tokens, dtype=torch.float8_e5m2, device=logits.device)
    _float8_gradient[_tiles(num_tokens, num_columns)](
        logits, targets, counts, normalizers, rows, columns, num_tokens, num_columns, logits.stride(0),
        z_loss_weight, GRADIENT_SCALE, ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS, num_warps=4,
    )  # fmt: skip
    return losses, normalizers, rows, columns


def _tiles(num_rows: int, num_columns: int) -> tuple[int, int]:
    return triton.cdiv(num_columns, TILE_COLUMNS), triton.cdiv(num_rows, TILE_ROWS)


if triton is not None:

    @triton.jit
    def _round_to_float8(
        values, scale, rows, columns, num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
    ):
        """One tile a program: divided by the scale, in e4m3, stored as it is and transposed."""
        row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)).to(tl.int64)
        inside = (row < num_rows)[:, None] & (column < num_columns)[None, :]
        place = row[:, None] * num_columns + column[None, :]
        value = tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
        rounded = (value / tl.load(scale)).to(tl.float8e4nv)
        tl.store(rows + place, rounded, mask=inside)
        tl.store(
            columns + column[:, None] * num_rows + row[None, :], tl.trans(rounded), mask=tl.trans(inside)
        )

    @triton.jit
    def _float8_gradient(
        logits, targets, counts, normalizers, rows, columns, num_tokens, num_columns, stride,
        z_loss_weight, float8_scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """One tile a program: p - onehot, scaled, in fp8, stored as it is and transposed."""
        token = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
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
