"""Memory of generation against batch and context: the report behind ``plan.py serve``."""

from __future__ import annotations

from typing import Any

from ..formulas.serving import cache_bytes, decode_tokens_per_second, largest_batch, weight_bytes
from ..models.architecture import Architecture, describe
from ..models.model_files import read_model
from ..models.stored_weights import quantization_note
from ..options import ServeCommand

BATCHES = (1, 8, 32, 128)


def serve_report(command: ServeCommand) -> dict[str, Any]:
    """Everything ``plan.py serve`` says, ready for JSON."""
    file = read_model(command.model)
    architecture = file.architecture
    memory = command.needed_memory_bytes()
    gpus = command.num_gpus or 1
    available = gpus * memory * (1 - command.margin)
    longest = architecture.max_positions
    contexts = [command.context_tokens] if command.context_tokens else _contexts(longest)
    batches = [command.batch] if command.batch else list(BATCHES)
    rows = [_row(command, architecture, available, context, batches) for context in contexts]
    note = quantization_note(file.quantization, file.source, command.dtype)
    notes = [note] if note else []
    if weight_bytes(architecture, command.dtype) > available:
        notes.append(
            f"the weights alone do not fit {gpus} x {command.gpu_name()}: more GPUs, or a smaller --dtype"
        )
    if longest and contexts[-1] > longest:
        notes.append(f"{contexts[-1]:,} tokens are beyond the {longest:,} positions the model declares")
    return {
        "model": {
            "source": file.source,
            "family": file.architecture.family,
            "description": describe(architecture),
        },
        "gpu": {"name": command.gpu_name(), "num_gpus": gpus, "bytes": memory, "margin": command.margin},
        "dtype": command.dtype,
        "cache_dtype": command.cache_dtype,
        "weight_bytes": weight_bytes(architecture, command.dtype),
        "cache_bytes_per_token": cache_bytes(architecture, 1, 1, command.cache_dtype),
        "batches": batches,
        "rows": rows,
        "notes": notes,
    }


def _row(
    command: ServeCommand, architecture: Architecture, available: float, context: int, batches: list[int]
) -> dict[str, Any]:
    """Cache, largest batch, and the rate of one sequence on one GPU of the table that can hold it."""
    gpu, dtype, cache_dtype = command.known_gpu(), command.dtype, command.cache_dtype
    largest = largest_batch(architecture, available, context, dtype, cache_dtype)
    rate = None
    if gpu is not None and (command.num_gpus or 1) == 1 and largest > 0:
        rate = decode_tokens_per_second(architecture, gpu, 1, context, dtype, cache_dtype)
    return {
        "context_tokens": context,
        "cache_bytes": {str(b): cache_bytes(architecture, b, context, cache_dtype) for b in batches},
        "largest_batch": largest,
        "tokens_per_second_bound": rate,
    }


def _contexts(longest: int | None) -> list[int]:
    limit = longest or 32_768
    return [context for context in (1024, 2048, 4096, 8192, 32_768, 131_072) if context <= limit] or [limit]
