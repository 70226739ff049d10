"""What a run starts with, for the first line of its log: model, optimizer, hardware, batch."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ..precision import precision_of
from .throughput import ModelFlops


def startup_facts(
    arguments: TrainingArguments, model: Any, optimizer: Any, flops: ModelFlops | None
) -> dict[str, Any]:
    """Facts of this process, JSON-ready."""
    return {
        "model": model_facts(model),
        "optimizer": optimizer_facts(optimizer),
        "hardware": hardware_facts(arguments),
        "batch": batch_facts(arguments),
        "flops": None if flops is None else flops_facts(flops),
    }


def model_facts(model: Any) -> dict[str, Any]:
    """Exact counts; a parameter that layers share is counted once."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embeddings = {
        id(layer.weight): layer.weight.numel()
        for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        if layer is not None and hasattr(layer, "weight")
    }
    return {
        "architecture": model.config.model_type,
        "num_parameters": total,
        "num_trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "num_non_embedding_parameters": total - sum(embeddings.values()),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def optimizer_facts(optimizer: Any) -> dict[str, Any] | None:
    """Class and groups, without the wrappers of accelerate and DeepSpeed."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    if optimizer is None:
        return None
    groups = [
        {"num_parameters": sum(p.numel() for p in group["params"])}
        | {name: value for name, value in group.items() if isinstance(value, (int, float, str, bool))}
        for group in optimizer.param_groups
    ]
    return {"type": type(optimizer).__name__, "param_groups": groups}


def hardware_facts(arguments: TrainingArguments) -> dict[str, Any]:
    """The device of this rank; all ranks are taken to have the same."""
    device = arguments.device
    facts: dict[str, Any] = {
        "device": device.type,
        "num_ranks": arguments.world_size,
        "parallelism": distributed_type(arguments),
        "mixed_precision": precision_of(arguments),
    }
    if device.type == "cuda":
        facts["gpu_name"] = torch.cuda.get_device_name(device)
        facts["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
    return facts


def distributed_type(arguments: TrainingArguments) -> str:
    state = arguments.distributed_state
    return "NO" if state is None else str(state.distributed_type).rsplit(".", 1)[-1]


def batch_facts(arguments: TrainingArguments) -> dict[str, int]:
    return {
        "micro_batch_sequences": arguments.train_batch_size,
        "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
        "num_ranks": arguments.world_size,
    }


def flops_facts(flops: ModelFlops) -> dict[str, Any]:
    return {
        "per_token_full_attention": flops.full_per_token,
        "per_token_causal": flops.causal_per_token,
        "peak_per_rank": flops.peak_flops,
        "mfu_denominator": flops.denominator,
    }


def memory_now(device_type: str) -> dict[str, int]:
    """Bytes on the device of this rank as its allocator counts them, and of this process in host memory.

    The allocator's counters are kept on the host: reading them waits for nothing.
    """
    resident = _resident_bytes()
    memory = {"host_memory_bytes": resident, "host_memory_peak_bytes": max(resident, _peak_resident_bytes())}
    if device_type == "cuda":
        memory |= {
            "memory_allocated_bytes": torch.cuda.memory_allocated(),
            "memory_reserved_bytes": torch.cuda.memory_reserved(),
            "memory_peak_bytes": torch.cuda.max_memory_allocated(),
            "memory_peak_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    return memory


def _peak_resident_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _resident_bytes() -> int:
    status = Path("/proc/self/status")
    match = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(match.group(1)) * 1024 if match else _peak_resident_bytes()
