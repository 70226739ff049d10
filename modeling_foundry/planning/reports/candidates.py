"""Every sensible architecture as arrays: one row a candidate, the planner's own formulas on whole columns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..formulas.flops import count_flops
from ..formulas.memory import TrainingSetup, memory_terms
from ..formulas.parameters import EMBEDDING, HEAD, count_parameters
from ..models.architecture import Architecture, Attention, Block, FeedForward
from ..models.fields import PlanError
from .budget import LAW_VOCABULARY

ALIGNMENT = 128  # tensor cores work on tiles; a size that 128 divides wastes none
KEY_VALUE_GROUPS = (1, 2, 4, 8)  # query heads per key-value head
FEED_FORWARD_MULTIPLES = (8 / 3, 3.0, 3.5, 4.0)  # Llama, Qwen3, Llama 3, the classic four
HEAD_DIMS = (64, 128)
LARGEST_SEARCH = 8_000_000
REFERENCE_ROWS = LAW_VOCABULARY  # vocabulary of the laws' own runs
SERVING_BATCH, SERVING_CONTEXT = 32, 4096

# Tokens a character of a vocabulary of V entries, a ln²V + b ln V + c: Tao et al. 2024, arXiv:2407.13623,
# constants from their published code.
FERTILITY = (0.00639222, -0.15811069, 1.20470122)


@dataclass(frozen=True)
class Bounds:
    """What is sensible: sizes and the ratio of width to depth."""

    layers: tuple[int, int] = (4, 80)
    hidden: tuple[int, int] = (128, 8192)
    width_over_depth: tuple[float, float] = (32, 192)


@dataclass(frozen=True)
class Candidates:
    """Columns of equal length, and the architecture whose fields are those columns.

    Args:
        columns: name -> whole numbers (n): num_hidden_layers, hidden_size, num_attention_heads, ….
        tied: one word for all rows, since it changes the formulas.
    """

    columns: dict[str, np.ndarray]
    tied: bool

    def __len__(self) -> int:
        return len(self.columns["hidden_size"])

    def architecture(self) -> Architecture:
        """Fields are columns: everything the planner computes from it is a column too.

        In double precision, exact up to 2**53: FLOPs of long sequences are more than an int64 holds.
        """
        c: dict[str, Any] = {name: column.astype(np.float64) for name, column in self.columns.items()}
        attention = Attention(c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], qk_norm=True)
        block = Block(attention, FeedForward(c["intermediate_size"]))
        return Architecture(
            "foundry", c["vocab_size"], c["hidden_size"], ((c["num_hidden_layers"], block),), self.tied
        )

    def row(self, index: int) -> dict[str, int | bool]:
        """One candidate with the names of a recipe."""
        return {name: int(column[index]) for name, column in self.columns.items()} | {
            "tie_word_embeddings": self.tied
        }

    def where(self, mask: np.ndarray) -> Candidates:
        return Candidates({name: column[mask] for name, column in self.columns.items()}, self.tied)


def all_candidates(bounds: Bounds, vocabularies: list[int], tied: bool) -> Candidates:
    """The product of all axes, less what does not divide or has an unusual shape.

    Raises:
        PlanError: more candidates than memory is good for.
    """
    layers = np.arange(bounds.layers[0], bounds.layers[1] + 1, 2)
    hidden = np.arange(-(-bounds.hidden[0] // ALIGNMENT), bounds.hidden[1] // ALIGNMENT + 1) * ALIGNMENT
    axes = (layers, hidden, HEAD_DIMS, KEY_VALUE_GROUPS, FEED_FORWARD_MULTIPLES, vocabularies)
    number = math.prod(np.size(axis) for axis in axes)
    if number > LARGEST_SEARCH:
        raise PlanError(f"search: {number:,} candidates, more than {LARGEST_SEARCH:,}; narrow the bounds")
    depth, width, head_dim, group, multiple, rows = (
        grid.ravel() for grid in np.meshgrid(*map(np.asarray, axes), indexing="ij")
    )
    heads = width // head_dim
    key_values = heads // group
    low, high = bounds.width_over_depth
    keep = (width % head_dim == 0) & (heads % group == 0) & (width >= low * depth) & (width <= high * depth)
    keep &= (key_values * head_dim % ALIGNMENT == 0) & (key_values > 0)
    inner = (np.rint(multiple * width / ALIGNMENT) * ALIGNMENT).astype(np.int64)
    columns = {
        "num_hidden_layers": depth, "hidden_size": width, "intermediate_size": inner,
        "num_attention_heads": heads, "num_key_value_heads": key_values, "head_dim": head_dim,
        "vocab_size": rows,
    }  # fmt: skip
    return Candidates({name: column[keep].astype(np.int64) for name, column in columns.items()}, tied)


def measures(candidates: Candidates, setup: TrainingSetup) -> dict[str, np.ndarray]:
    """Columns that decide: parameters, FLOPs, memory of training and of serving.

    ``law_parameters`` is N with the vocabulary's matrices counted at 32,000 rows, the size the laws were
    fitted with: rows of a larger vocabulary cost memory but are not capacity the laws know of.
    """
    architecture = candidates.architecture()
    count = count_parameters(architecture)
    components: dict[str, Any] = count.components
    vocabulary = components[EMBEDDING] + components.get(HEAD, 0)
    total = np.asarray(count.total)
    persistent, moments = memory_terms(architecture, setup)
    fullest = np.maximum.reduce([sum(terms.values()) for terms in moments.values()])
    width = candidates.columns["hidden_size"]
    cache = np.asarray(cache_values_per_token(architecture) * 2)
    read = (total - width * candidates.columns["vocab_size"] * (not candidates.tied)) * 2
    return {
        "total_parameters": total.astype(np.int64),
        "law_parameters": total - vocabulary + 2 * REFERENCE_ROWS * width,
        "training_flops_per_token": np.asarray(
            count_flops(architecture, setup.sequence_length).training_per_token
        ),
        "training_bytes": sum(persistent.values()) + fullest,
        "serving_bytes": 2 * total + SERVING_BATCH * SERVING_CONTEXT * cache,
        "decode_bytes_per_token": read / SERVING_BATCH + SERVING_CONTEXT * cache,
    }


def cache_values_per_token(architecture: Architecture) -> Any:
    """Numbers one token leaves in the caches of all layers."""
    return sum(count * block.attention.cache_values_per_token for count, block in architecture.blocks())


def reference_tokens_per_token(vocabulary: Any) -> Any:
    """How many tokens of a 32,000-entry vocabulary one token of this vocabulary stands for."""
    return tokens_per_character(REFERENCE_ROWS) / tokens_per_character(vocabulary)


def tokens_per_character(vocabulary: Any) -> Any:
    """Tokens a character (Tao et al. 2024, equation 6); fitted from about 1,000 to 250,000 entries."""
    a, b, c = FERTILITY
    logarithm = np.log(vocabulary)
    return a * logarithm**2 + b * logarithm + c
