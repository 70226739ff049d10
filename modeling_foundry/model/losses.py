"""Next-token losses: the plain one, and one that never holds the logits of more than one chunk of tokens.

At 151,936 rows the logits of 32,768 tokens are 20 GB in fp32, and their gradient as much again.
:func:`linear_cross_entropy` computes loss and gradients chunk by chunk inside the forward pass
("Cut Your Losses", Wijmans et al. 2024, arXiv:2411.09009, and Liger Kernel, Hsu et al. 2024,
arXiv:2410.10989, do the same in Triton), so its peak is one chunk.  The z-loss is PaLM's
(Chowdhery et al. 2022, arXiv:2204.02311, section 5).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .softmax_kernels import softmax_cross_entropy_, softmax_kernels_serve

IGNORE_INDEX = -100


def shift_labels_left(labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Labels (batch, sequence) moved so that position t holds the token that position t predicts."""
    return F.pad(labels, (0, 1), value=ignore_index)[..., 1:].contiguous()


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    z_loss_weight: float = 0.0,
    return_z_loss: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of whole logits (…, vocabulary) with already shifted labels (…), softmax in fp32.

    The sum is divided by ``num_items_in_batch`` when given, else by the number of labels that count; with
    none that counts the mean is not a number, as in PyTorch.  With ``return_z_loss`` also the part of the loss
    that is z-loss, detached.
    """
    logits = _at_least_fp32(logits).flatten(0, -2)
    labels = labels.to(logits.device).flatten()
    denominator = _denominator(labels, num_items_in_batch, ignore_index)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    z_total = torch.zeros_like(total)
    if z_loss_weight:
        counts = labels != ignore_index
        z_total = z_loss_weight * (logits.logsumexp(-1).square() * counts).sum()
        total = total + z_total
    loss = total / denominator
    return (loss, z_total.detach() / denominator) if return_z_loss else loss


def linear_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = IGNORE_INDEX,
    chunk_tokens: int = 8192,
    z_loss_weight: float = 0.0,
    return_z_loss: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Cross-entropy of ``hidden_states @ weight.T + bias`` without ever holding all the logits.

    Args:
        hidden_states: (…, hidden), any float dtype; under autocast the products run in autocast's dtype.
        weight: (vocabulary, hidden).  Frozen weights, bias or hidden states cost no gradient memory.
        labels: (…) token ids, already shifted.
        num_items_in_batch: divisor of the summed loss; the number of labels that count when None.
        chunk_tokens: rows of logits that exist at one time.
        z_loss_weight: adds ``z_loss_weight * logsumexp(logits)**2`` per token.
        return_z_loss: also give the part of the loss that is z-loss, which has no gradient of its own.

    Returns:
        Scalar in fp32 (fp64 for fp64 inputs), equal to :func:`cross_entropy` of the whole logits.
    """
    hidden_states = hidden_states.flatten(0, -2)
    labels = labels.to(hidden_states.device).flatten()
    device_type = hidden_states.device.type
    autocast = torch.is_autocast_enabled(device_type)
    compute_dtype = torch.get_autocast_dtype(device_type) if autocast else hidden_states.dtype
    denominator = _denominator(labels, num_items_in_batch, ignore_index)
    with torch.autocast(device_type, enabled=False):
        loss, z_loss = _LinearCrossEntropy.apply(
            hidden_states,
            weight,
            bias,
            labels,
            denominator,
            compute_dtype,
            ignore_index,
            chunk_tokens,
            z_loss_weight,
        )
    return (loss, z_loss) if return_z_loss else loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over the chunks; backward only multiplies by a scalar.

    The gradients are kept times the power of two next to ``denominator``: divided by a million tokens already,
    most would be zero in fp16 before a GradScaler's factor reaches them.  In other dtypes the result is the same.
    """

    @staticmethod
    def forward(
        ctx,
        hidden_states,
        weight,
        bias,
        labels,
        denominator,
        compute_dtype,
        ignore_index,
        chunk_tokens,
        z_loss_weight,
    ):
        head = weight.to(compute_dtype)
        head_bias = None if bias is None else bias.to(compute_dtype)
        gradients = _GradientBuffers(hidden_states, weight, bias, ctx.needs_input_grad)
        mantissa, _ = torch.frexp(denominator)
        loss = torch.zeros((), dtype=_fp32_or_wider(compute_dtype), device=hidden_states.device)
        z_loss = torch.zeros_like(loss)
        for start in range(0, labels.numel(), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk = hidden_states[rows].to(compute_dtype)
            total, z_total, logits_gradient = _chunk_loss(
                F.linear(chunk, head, head_bias),
                labels[rows],
                mantissa,
                ignore_index,
                z_loss_weight,
                gradients.wanted,
            )
            loss += total / denominator
            z_loss += z_total / denominator
            if logits_gradient is not None:
                gradients.add(rows, chunk, head, logits_gradient)
            del logits_gradient  # or it would live while the next chunk's logits are made
        ctx.save_for_backward(*gradients.tensors(), denominator / mantissa)
        ctx.mark_non_differentiable(z_loss)
        return loss, z_loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient, _):
        *gradients, power = ctx.saved_tensors
        factor = loss_gradient / power
        scaled = [
            None if gradient is None else gradient * factor.to(gradient.dtype) for gradient in gradients
        ]
        return (*scaled, None, None, None, None, None, None)


class _GradientBuffers:
    """Where the chunks' gradients go: hidden states by row, weight and bias summed in fp32."""

    def __init__(self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None, needs_gradient: tuple):
        self.hidden_states = torch.empty_like(hidden_states) if needs_gradient[0] else None
        self.weight = (
            torch.zeros_like(weight, dtype=_fp32_or_wider(weight.dtype)) if needs_gradient[1] else None
        )
        self.bias = None
        if bias is not None and needs_gradient[2]:
            self.bias = torch.zeros_like(bias, dtype=_fp32_or_wider(bias.dtype))
        self.dtypes = (hidden_states.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype)
        self.wanted = any(needs_gradient[:3])

    def add(self, rows: slice, chunk: Tensor, head: Tensor, logits_gradient: Tensor) -> None:
        if self.hidden_states is not None:
            self.hidden_states[rows] = logits_gradient @ head
        if self.weight is not None:
            _add_product(self.weight, logits_gradient.T, chunk)
        if self.bias is not None:
            self.bias += logits_gradient.sum(0)

    def tensors(self) -> list[Tensor | None]:
        buffers = (self.hidden_states, self.weight, self.bias)
        return [
            None if buffer is None else buffer.to(dtype)
            for buffer, dtype in zip(buffers, self.dtypes, strict=True)
        ]


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with ``total`` in fp32; on CUDA the product's own kernel does the addition."""
    if total.is_cuda and total.dtype == torch.float32 and left.dtype in (torch.bfloat16, torch.float16):
        torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    else:
        total += left @ right


def _chunk_loss(
    logits: Tensor,
    labels: Tensor,
    divisor: Tensor,
    ignore_index: int,
    z_loss_weight: float,
    wants_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Summed loss of one chunk, its z-loss part, and the gradient of its logits over ``divisor``.

    With p = softmax(z) and L = logsumexp(z): loss = L - z[label] + w L², gradient = (1 + 2 w L) p - onehot.
    """
    counts = labels != ignore_index
    targets, scale = torch.where(counts, labels, 0), counts / divisor
    if softmax_kernels_serve(logits):
        losses, normalizers = softmax_cross_entropy_(logits, targets, scale, z_loss_weight, wants_gradient)
        gradient = logits if wants_gradient else None
    else:
        losses, normalizers, gradient = _softmax_part(
            logits, targets[:, None], scale, z_loss_weight, wants_gradient
        )
    z_losses = z_loss_weight * normalizers.square()
    return torch.where(counts, losses, 0.0).sum(), torch.where(counts, z_losses, 0.0).sum(), gradient


def _softmax_part(
    logits: Tensor, targets: Tensor, scale: Tensor, z_loss_weight: float, wants_gradient: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Losses (T), normalizers logsumexp (T) and gradient (T, V) of logits (T, V) with targets (T, 1); fp32 inside.

    The gradient at the target is p - 1: subtracted before rounding to bf16, after which too little is left.
    """
    dtype, logits = logits.dtype, _at_least_fp32(logits)
    normalizer = logits.logsumexp(-1)
    log_probability = logits.gather(-1, targets)[:, 0] - normalizer
    losses, slope = -log_probability, torch.ones_like(normalizer)
    if z_loss_weight:
        losses, slope = losses + z_loss_weight * normalizer.square(), slope + 2 * z_loss_weight * normalizer
    if not wants_gradient:
        return losses, normalizer, None
    at_target = (slope * log_probability.exp() - 1) * scale
    softmax = logits.sub_(normalizer[:, None]).exp_().mul_((slope * scale)[:, None])
    gradient = softmax.scatter_(-1, targets, at_target[:, None].to(softmax.dtype)).to(dtype)
    return losses, normalizer, gradient


def _denominator(labels: Tensor, num_items_in_batch: Tensor | int | None, ignore_index: int) -> Tensor:
    if num_items_in_batch is None:
        return (labels != ignore_index).sum().to(torch.float32)
    count = torch.as_tensor(num_items_in_batch, device=labels.device, dtype=torch.float32)
    return count.reshape(())  # DataParallel gives every replica its count as (1, 1)


def _fp32_or_wider(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.to(_fp32_or_wider(tensor.dtype))
