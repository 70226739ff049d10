"""Floating-point operations of one forward pass and of training, by component, in two conventions.

A multiplication and an addition are two operations.  Only matrix products are counted, as PyTorch's
FlopCounterMode counts them; norms, activations, softmax and rotary positions are below one percent.  The
backward pass of a product is two products of the same size, so training is three times the forward pass.

*full* counts every pair of positions (what papers print: PaLM, arXiv:2204.02311, appendix B); *causal*
counts the half that a causal kernel computes, less again inside a sliding window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..models.architecture import (
    Architecture,
    Attention,
    Block,
    Experts,
    FeedForward,
    LatentAttention,
)

Convention = Literal["full", "causal"]

PROJECTIONS = "attention projections"
SCORES = "attention scores"
FEED_FORWARD = "feed-forward"
ROUTER = "router"
ROUTED = "routed experts"
SHARED = "shared experts"
HEAD = "output head"
TRAINING_OVER_FORWARD = 3


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one sequence.

    Args:
        components: name -> FLOPs of the forward pass over the whole sequence.
    """

    components: dict[str, int]
    sequence_length: int
    convention: Convention

    @property
    def forward_per_sequence(self) -> int:
        return sum(self.components.values())

    @property
    def forward_per_token(self) -> float:
        return self.forward_per_sequence / self.sequence_length

    @property
    def training_per_token(self) -> float:
        """Forward and backward: what MFU counts.  Recomputed activations are not model FLOPs."""
        return TRAINING_OVER_FORWARD * self.forward_per_token

    @property
    def attention_share(self) -> float:
        """Part of all FLOPs that grows with the sequence length."""
        return self.components[SCORES] / self.forward_per_sequence


def count_flops(
    architecture: Architecture, sequence_length: int, convention: Convention = "full"
) -> FlopCount:
    """FLOPs of one sequence of ``sequence_length`` tokens through the model and its output head."""
    components = {PROJECTIONS: 0, SCORES: 0}
    for count, block in architecture.blocks():
        per_token = block_products(block, architecture.hidden_size)
        for name, weights in per_token.items():
            components[name] = components.get(name, 0) + count * 2 * weights * sequence_length
        pairs_twice = visible_pairs_twice(sequence_length, block.attention.window, convention)
        components[SCORES] += count * _score_width(block) * pairs_twice
    components[HEAD] = 2 * architecture.vocab_size * architecture.hidden_size * sequence_length
    return FlopCount(components, sequence_length, convention)


def training_flops_per_token(
    architecture: Architecture, sequence_length: int, convention: Convention = "full"
) -> float:
    """Forward and backward FLOPs of one token: 6 x matmul weights + 12 x layers x heads x head_dim x S."""
    return count_flops(architecture, sequence_length, convention).training_per_token


def visible_pairs_twice(sequence_length: int, window: int | None, convention: Convention) -> int:
    """Twice the (query, key) pairs of one sequence, so that it is a whole number.

    Full: S² pairs.  Causal: S²/2, the design's convention (the diagonal counted half).  With a window W < S:
    W·S - W²/2, which is S²/2 again at W = S.
    """
    if convention == "full":
        return 2 * sequence_length**2
    width = min(window or sequence_length, sequence_length)
    return 2 * width * sequence_length - width**2


def block_products(block: Block, hidden: int) -> dict[str, int]:
    """Component -> weights of one layer that one token is multiplied with."""
    return {PROJECTIONS: _projection_weights(block.attention, hidden)} | _feed_forward(
        block.feed_forward, hidden
    )


def _score_width(block: Block) -> int:
    """Half the FLOPs of a (query, key) pair over all heads: one product for the score, one for the value."""
    attention = block.attention
    return attention.num_heads * (attention.query_dim + attention.value_dim)


def _projection_weights(attention: Attention | LatentAttention, hidden: int) -> int:
    if isinstance(attention, Attention):
        width = (attention.num_heads + attention.num_key_value_heads) * attention.head_dim
        return 2 * hidden * width
    heads, rank = attention.num_heads, attention.query_rank
    query = heads * attention.query_dim
    queries = hidden * query if rank is None else (hidden + query) * rank
    down = hidden * (attention.key_value_rank + attention.rotary_dim)
    up = attention.key_value_rank * heads * (attention.plain_dim + attention.value_dim)
    return queries + down + up + heads * attention.value_dim * hidden


def _feed_forward(feed_forward: FeedForward | Experts, hidden: int) -> dict[str, int]:
    if isinstance(feed_forward, FeedForward):
        return {FEED_FORWARD: (2 + feed_forward.gated) * hidden * feed_forward.intermediate_size}
    products = {
        ROUTER: hidden * feed_forward.num_experts,
        ROUTED: feed_forward.num_active * 3 * hidden * feed_forward.intermediate_size,
    }
    if feed_forward.shared_size:
        products[SHARED] = 3 * hidden * feed_forward.shared_size
    return products
