"""Memory and speed of generation: weights, key-value cache, and what memory bandwidth allows."""

from __future__ import annotations

from ..models.architecture import Architecture
from .hardware import Gpu
from .parameters import count_parameters

BYTES_OF_DTYPE = {"fp32": 4.0, "bf16": 2.0, "fp8": 1.0, "int4": 0.5}


def weight_bytes(architecture: Architecture, dtype: str = "bf16") -> int:
    """Bytes of the weights; routing biases are counted, prediction layers are not."""
    parameters = count_parameters(architecture)
    return round((parameters.total + parameters.selection_biases) * BYTES_OF_DTYPE[dtype])


def cache_bytes(architecture: Architecture, batch: int, context_tokens: int, dtype: str = "bf16") -> int:
    """Bytes of the cache of ``batch`` sequences of ``context_tokens``; a window bounds its layers."""
    values = 0
    for count, block in architecture.blocks():
        attention = block.attention
        tokens = min(context_tokens, attention.window or context_tokens)
        values += count * attention.cache_values_per_token * tokens
    return round(batch * values * BYTES_OF_DTYPE[dtype])


def largest_batch(
    architecture: Architecture, available_bytes: float, context_tokens: int, dtype: str, cache_dtype: str
) -> int:
    """Sequences of ``context_tokens`` whose cache fits beside the weights; 0 when the weights do not."""
    rest = available_bytes - weight_bytes(architecture, dtype)
    return max(0, int(rest // cache_bytes(architecture, 1, context_tokens, cache_dtype)))


def decode_tokens_per_second(
    architecture: Architecture, gpu: Gpu, batch: int, context_tokens: int, dtype: str, cache_dtype: str
) -> float:
    """Upper bound of one GPU's generation rate: a step reads the active weights and the cache once.

    A batch of a mixture of experts may touch every expert, so all weights are read from batch 2 on.
    """
    parameters = count_parameters(architecture)
    read = parameters.active if batch == 1 else parameters.total
    read_bytes = (read - parameters.embedding * (not architecture.tied)) * BYTES_OF_DTYPE[dtype]
    read_bytes += cache_bytes(architecture, batch, context_tokens, cache_dtype)
    return batch * gpu.bandwidth_gb_s * 1e9 / read_bytes
