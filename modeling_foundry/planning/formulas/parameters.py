"""How many parameters a model has, by component, and how many of them one token uses."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.architecture import (
    Architecture,
    Attention,
    Block,
    Experts,
    FeedForward,
    LatentAttention,
)

EMBEDDING = "token embedding"
POSITIONS = "position embedding"
ATTENTION = "attention"
FEED_FORWARD = "feed-forward"
ROUTER = "router"
ROUTED = "routed experts"
SHARED = "shared experts"
NORMS = "norms"
HEAD = "output head"


@dataclass(frozen=True)
class ParameterCount:
    """Trained parameters of a model.

    Args:
        components: name -> count over all layers; a tied head is not listed, it is the embedding.
        active: parameters one token uses: all, less the experts it is not sent to.
        selection_biases: numbers that steer routing and are saved but not trained (DeepSeek-V3).
        prediction_layers: parameters of multi-token-prediction layers, not part of ``total``; their
            embedding and head are the model's own.
    """

    components: dict[str, int]
    active: int
    selection_biases: int = 0
    prediction_layers: int = 0

    @property
    def total(self) -> int:
        return sum(self.components.values())

    @property
    def embedding(self) -> int:
        """Rows that are looked up, not multiplied."""
        return self.components[EMBEDDING] + self.components.get(POSITIONS, 0)


def count_parameters(architecture: Architecture) -> ParameterCount:
    """Exact parameter count, equal to the model that transformers builds from the same configuration."""
    hidden, norm = architecture.hidden_size, _norm_size(architecture.hidden_size, architecture.normalization)
    components = {EMBEDDING: architecture.vocab_size * hidden}
    if architecture.learned_positions:
        components[POSITIONS] = architecture.learned_positions * hidden
    selection_biases = unused = 0
    for count, block in architecture.blocks():
        for name, size in block_parameters(block, architecture).items():
            components[name] = components.get(name, 0) + count * size
        if isinstance(block.feed_forward, Experts):
            selection_biases += count * block.feed_forward.num_experts * block.feed_forward.selection_bias
            unused += count * _unused_expert_parameters(block.feed_forward, hidden)
    components[NORMS] += norm
    if not architecture.tied:
        components[HEAD] = architecture.vocab_size * hidden
    total = sum(components.values())
    return ParameterCount(components, total - unused, selection_biases, _prediction_layers(architecture))


def block_parameters(block: Block, architecture: Architecture) -> dict[str, int]:
    """Component -> parameters of one layer."""
    hidden, kind = architecture.hidden_size, architecture.normalization
    components = {ATTENTION: _attention(block.attention, hidden)}
    components |= _feed_forward(block.feed_forward, hidden)
    components[NORMS] = block.num_norms * _norm_size(hidden, kind) + _attention_norms(block.attention, kind)
    return components


def _norm_size(width: int, normalization: str) -> int:
    """RMSNorm has a weight; LayerNorm a weight and a bias."""
    return width if normalization == "rmsnorm" else 2 * width


def _attention(attention: Attention | LatentAttention, hidden: int) -> int:
    if isinstance(attention, LatentAttention):
        return _latent_attention(attention, hidden)
    query = attention.num_heads * attention.head_dim
    key_value = attention.num_key_value_heads * attention.head_dim
    weights = hidden * (query + 2 * key_value) + query * hidden
    biases = attention.qkv_bias * (query + 2 * key_value) + attention.output_bias * hidden
    return weights + biases


def _latent_attention(attention: LatentAttention, hidden: int) -> int:
    heads, rank = attention.num_heads, attention.query_rank
    query = heads * attention.query_dim
    queries = hidden * query if rank is None else hidden * rank + rank * query + attention.bias * rank
    compressed = attention.key_value_rank + attention.rotary_dim
    key_values = hidden * compressed + attention.bias * compressed
    key_values += attention.key_value_rank * heads * (attention.plain_dim + attention.value_dim)
    output = heads * attention.value_dim * hidden + attention.bias * hidden
    return queries + key_values + output


def _attention_norms(attention: Attention | LatentAttention, normalization: str) -> int:
    """Norms inside attention: per head of queries and keys (QK-norm), or of MLA's compressed vectors."""
    if isinstance(attention, LatentAttention):
        return attention.key_value_rank + (attention.query_rank or 0)
    return 2 * _norm_size(attention.head_dim, normalization) if attention.qk_norm else 0


def _feed_forward(feed_forward: FeedForward | Experts, hidden: int) -> dict[str, int]:
    if isinstance(feed_forward, FeedForward):
        inner, gated = feed_forward.intermediate_size, feed_forward.gated
        biases = feed_forward.bias * ((1 + gated) * inner + hidden)
        return {FEED_FORWARD: (2 + gated) * hidden * inner + biases}
    components = {
        ROUTER: hidden * feed_forward.num_experts,
        ROUTED: feed_forward.num_experts * 3 * hidden * feed_forward.intermediate_size,
    }
    if feed_forward.shared_size:
        components[SHARED] = 3 * hidden * feed_forward.shared_size
    return components


def _unused_expert_parameters(experts: Experts, hidden: int) -> int:
    return (experts.num_experts - experts.num_active) * 3 * hidden * experts.intermediate_size


def _prediction_layers(architecture: Architecture) -> int:
    """Each: a block of the last kind, a (2H, H) projection, norms of both its inputs and of its output."""
    if not architecture.num_prediction_layers:
        return 0
    block = sum(block_parameters(architecture.last_block, architecture).values())
    norms = 3 * _norm_size(architecture.hidden_size, architecture.normalization)
    return architecture.num_prediction_layers * (block + 2 * architecture.hidden_size**2 + norms)
