"""Bytes that one token leaves behind in one layer for the backward pass.

Eager mode keeps what each operation saves, read off transformers' and our own model code; compiled mode keeps
the inputs of matrix products and attention and recomputes norms, rotations and activations from them.  A layer
compiled by itself recomputes two things more: the residual stream in its middle, from the attention's output, and in
fp8 every rounded input of a product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.architecture import (
    Architecture,
    Attention,
    Block,
    Experts,
    FeedForward,
    LatentAttention,
)


@dataclass(frozen=True)
class Bytes:
    """Bytes of one value.

    Args:
        residual: in the residual stream, which is fp32 under autocast.
        compute: in a matrix product.
        compiled: whether the layers run through torch.compile.
        fp8: whether the operands of products are rounded to fp8.
        by_layer: whether each layer is compiled by itself, rather than the whole model.
    """

    residual: int
    compute: int
    compiled: bool
    fp8: bool = False
    by_layer: bool = False

    @property
    def product_input(self) -> int:
        """Of a tensor that only a matrix product keeps."""
        if self.fp8:
            return 0 if self.by_layer else 1
        return self.compute

    @property
    def in_the_middle(self) -> Bytes:
        """The same with the residual stream as it is between attention and feed-forward."""
        return replace(self, residual=self.compute) if self.by_layer else self

    @property
    def casts(self) -> bool:
        """Whether each matrix product makes its own bf16 copy of its input (autocast)."""
        return self.residual != self.compute


def layer_bytes_per_token(block: Block, architecture: Architecture, sizes: Bytes) -> float:
    """Bytes one token leaves behind in one layer."""
    hidden, kind = architecture.hidden_size, architecture.normalization
    into_attention = 3 if isinstance(block.attention, Attention) else 2
    into_feed_forward = _num_first_products(block.feed_forward)
    norms = norm_bytes_per_token(hidden, kind, sizes, into_attention)
    norms += norm_bytes_per_token(hidden, kind, sizes.in_the_middle, into_feed_forward)
    norms += (block.num_norms - 2) * norm_bytes_per_token(hidden, kind, sizes, 0)
    attention = _attention(block.attention, kind, sizes)
    return norms + attention + _feed_forward(block.feed_forward, hidden, sizes)


def norm_bytes_per_token(width: int, normalization: str, sizes: Bytes, consumers: int) -> int:
    """A norm's input, what it keeps inside, and its output: once, or once for each consumer (autocast)."""
    if sizes.compiled:
        return width * (sizes.residual + sizes.product_input * min(consumers, 1))
    copies = consumers if sizes.casts else min(consumers, 1)
    outputs = copies * sizes.compute * width
    if normalization == "layernorm":
        return sizes.residual * width + 8 + outputs  # input, mean and reciprocal deviation
    return 4 * width + 4 + sizes.residual * width + outputs  # fp32 input, rsqrt, normalised input


def widest_feed_forward(block: Block) -> int:
    """Inner values of one token in the feed-forward layer."""
    feed_forward = block.feed_forward
    if isinstance(feed_forward, Experts):
        return feed_forward.num_active * feed_forward.intermediate_size + feed_forward.shared_size
    return feed_forward.intermediate_size


def _num_first_products(feed_forward: FeedForward | Experts) -> int:
    if isinstance(feed_forward, Experts):
        return 2 + 2 * bool(feed_forward.shared_size)  # router, experts, and the shared expert's two
    return 2 if feed_forward.gated else 1


def _attention(attention: Attention | LatentAttention, normalization: str, sizes: Bytes) -> float:
    if isinstance(attention, LatentAttention):
        return _latent_attention(attention, sizes)
    query = attention.num_heads * attention.head_dim
    key = attention.num_key_value_heads * attention.head_dim
    kept = sizes.compute * (query + 2 * key)  # what the attention kernel reads
    kept += sizes.compute * query + 4 * attention.num_heads  # its output and log-sum-exp
    if sizes.fp8 and not sizes.by_layer:
        kept += query  # the output projection keeps its own fp8 copy of that output
    if attention.qk_norm:
        heads = attention.num_heads + attention.num_key_value_heads
        kept += _qk_norm(query + key, heads, normalization, sizes)
    return kept


def _qk_norm(width: int, heads: int, normalization: str, sizes: Bytes) -> int:
    if sizes.compiled:
        return sizes.compute * width
    if normalization == "layernorm":
        return sizes.compute * width + 8 * heads
    return (4 + sizes.compute) * width + 4 * heads


def _latent_attention(attention: LatentAttention, sizes: Bytes) -> float:
    heads = attention.num_heads
    query, value = heads * attention.query_dim, heads * attention.value_dim
    compressed = attention.key_value_rank + (attention.query_rank or 0)
    inside_norms = 2 if sizes.compiled else 4
    return sizes.compute * (2 * query + 2 * value + inside_norms * compressed) + 4 * heads


def _feed_forward(feed_forward: FeedForward | Experts, hidden: int, sizes: Bytes) -> float:
    if isinstance(feed_forward, Experts):
        inner = feed_forward.num_active * feed_forward.intermediate_size + feed_forward.shared_size
        dispatched = sizes.compute * 2 * feed_forward.num_active * hidden  # each expert's input and output
        return dispatched + _gated(inner, sizes) + 4 * feed_forward.num_experts
    if feed_forward.gated:
        return _gated(feed_forward.intermediate_size, sizes)
    return (sizes.compute + sizes.product_input) * feed_forward.intermediate_size


def _gated(inner: int, sizes: Bytes) -> int:
    """Gate, up and their product; eager mode keeps the activated gate as well."""
    return ((2 if sizes.compiled else 3) * sizes.compute + sizes.product_input) * inner
