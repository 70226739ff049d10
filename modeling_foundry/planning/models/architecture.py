"""What a decoder-only transformer is made of, in words every family shares.

The families of ``families.py`` are translated into these few parts; parameters, FLOPs and memory are then
computed once, for the parts, and never again per family.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Normalization = Literal["rmsnorm", "layernorm"]


@dataclass(frozen=True)
class Attention:
    """Multi-head attention; fewer key-value heads than heads is GQA, one is MQA (arXiv:2305.13245).

    Args:
        window: tokens a position may look back on, itself included; None is the whole sequence.
    """

    num_heads: int
    num_key_value_heads: int
    head_dim: int
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    window: int | None = None

    @property
    def query_dim(self) -> int:
        """Width of one head in the product of queries and keys."""
        return self.head_dim

    @property
    def value_dim(self) -> int:
        """Width of one head in the product of weights and values."""
        return self.head_dim

    @property
    def cache_values_per_token(self) -> int:
        """Numbers one token leaves in the cache of one layer: its keys and its values."""
        return 2 * self.num_key_value_heads * self.head_dim


@dataclass(frozen=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1).

    Args:
        query_rank: width of the compressed query; None projects queries directly.
        key_value_rank: width of the compressed keys and values, which is what the cache holds.
        rotary_dim: part of a head that carries positions; its key is shared by all heads.
        plain_dim: part of a head that does not.
    """

    num_heads: int
    query_rank: int | None
    key_value_rank: int
    plain_dim: int
    rotary_dim: int
    value_dim: int
    bias: bool = False
    window: None = None

    @property
    def query_dim(self) -> int:
        return self.plain_dim + self.rotary_dim

    @property
    def cache_values_per_token(self) -> int:
        return self.key_value_rank + self.rotary_dim


@dataclass(frozen=True)
class FeedForward:
    """A dense feed-forward layer: three matrices when gated (SwiGLU, GeGLU; arXiv:2002.05202), else two."""

    intermediate_size: int
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: a router sends each token to ``num_active`` of ``num_experts`` gated experts.

    Args:
        shared_size: inner width of the experts every token passes, all together; 0 is none.
        selection_bias: one number an expert that steers the choice and is no trained parameter
            (DeepSeek-V3, arXiv:2412.19437, section 2.1.2).
    """

    num_experts: int
    num_active: int
    intermediate_size: int
    shared_size: int = 0
    selection_bias: bool = False


@dataclass(frozen=True)
class Block:
    """One decoder layer."""

    attention: Attention | LatentAttention
    feed_forward: FeedForward | Experts
    num_norms: int = 2


@dataclass(frozen=True)
class Architecture:
    """A whole model.

    Args:
        family: ``model_type`` of the configuration it came from.
        groups: (how many, block): equal layers are described once, in any order.
        learned_positions: rows of a trained position table; 0 is none (RoPE).
        max_positions: longest sequence the configuration declares.
        num_prediction_layers: multi-token-prediction layers, listed apart from the model (arXiv:2412.19437,
            section 2.2); each is one more block of the last kind, a projection and three norms.
    """

    family: str
    vocab_size: int
    hidden_size: int
    groups: tuple[tuple[int, Block], ...]
    tied: bool
    normalization: Normalization = "rmsnorm"
    learned_positions: int = 0
    max_positions: int | None = None
    num_prediction_layers: int = 0

    @property
    def num_layers(self) -> int:
        return sum(count for count, _ in self.groups)

    def blocks(self) -> Iterator[tuple[int, Block]]:
        """(how many, block) of every kind of layer."""
        return iter(self.groups)

    @property
    def last_block(self) -> Block:
        return self.groups[-1][1]

    @property
    def has_experts(self) -> bool:
        return any(isinstance(block.feed_forward, Experts) for _, block in self.groups)


def describe(architecture: Architecture) -> str:
    """One line: layers, widths, heads, feed-forward, norms, vocabulary."""
    block = architecture.last_block
    parts = [f"{architecture.num_layers} layers", f"hidden {architecture.hidden_size:,}"]
    parts.append(_describe_attention(block.attention))
    parts.append(_describe_feed_forward(block.feed_forward))
    if isinstance(block.attention, Attention) and block.attention.qk_norm:
        parts.append("QK-norm")
    parts.append(architecture.normalization)
    parts.append("learned positions" if architecture.learned_positions else "RoPE")
    parts.append(f"vocabulary {architecture.vocab_size:,} {'tied' if architecture.tied else 'untied'}")
    return ", ".join(parts)


def _describe_attention(attention: Attention | LatentAttention) -> str:
    if isinstance(attention, LatentAttention):
        return f"MLA {attention.num_heads} heads, cache rank {attention.key_value_rank}"
    heads, key_values = attention.num_heads, attention.num_key_value_heads
    kind = "MHA" if heads == key_values else "MQA" if key_values == 1 else "GQA"
    window = f" (window {attention.window:,})" if attention.window else ""
    return f"{kind} {heads}/{key_values} x {attention.head_dim}{window}"


def _describe_feed_forward(feed_forward: FeedForward | Experts) -> str:
    if isinstance(feed_forward, Experts):
        shared = f" + shared {feed_forward.shared_size:,}" if feed_forward.shared_size else ""
        chosen = f"{feed_forward.num_active} of {feed_forward.num_experts}"
        return f"experts {chosen} x {feed_forward.intermediate_size:,}{shared}"
    return f"{'gated' if feed_forward.gated else 'plain'} FFN {feed_forward.intermediate_size:,}"
