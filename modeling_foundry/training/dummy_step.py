"""One forward and backward pass at full size before the first step, of which nothing stays behind.

It runs on stand-ins: parameters that share the model's memory (bf16 copies where DeepSpeed will make them) and
copies of its buffers.  Gradients collect on the stand-ins, the model's own hooks never fire, and the random
generators are set back; so a run with the dummy step is bit for bit the run without it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import Trainer

from .forecast import recomputes
from .launch import engine_of
from .precision import stored_dtype


@dataclass(frozen=True)
class DummyStep:
    """What the pass showed; peak_bytes is None where no allocator counts (a CPU)."""

    loss: float
    seconds: float
    num_sequences: int
    num_tokens: int
    peak_bytes: int | None


class _ForwardBackward(nn.Module):
    """Both passes in one call: recomputed layers read parameters in the backward pass too."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Tensor], autocast: Any) -> Tensor:
        with autocast:
            loss = self.model(**inputs, use_cache=False).loss
        loss.backward()
        return loss.detach()


def take_dummy_step(trainer: Trainer) -> DummyStep:
    """Forward and backward over the first full micro-batch, before accelerate wraps the model.

    Raises:
        torch.OutOfMemoryError: it does not fit the device.
    """
    model, device = trainer.model, trainer.args.device
    inputs = {name: value.to(device) for name, value in first_micro_batch(trainer).items()}
    stored = stored_dtype(engine_of(trainer.accelerator.state), trainer.args)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    try:
        with generators_kept(device), training_mode(model), layers_recomputed(model, trainer.args):
            whole = _ForwardBackward(model)
            loss = functional_call(
                whole, stand_ins(whole, stored), (inputs, trainer.accelerator.autocast())
            ).item()
        peak = torch.cuda.max_memory_allocated(device) if on_gpu else None
    finally:
        if on_gpu:
            torch.cuda.empty_cache()  # what other libraries allocate later must find room
            torch.cuda.reset_peak_memory_stats(device)
    num_sequences, num_tokens = inputs["input_ids"].shape
    return DummyStep(loss, time.perf_counter() - start, num_sequences, num_tokens, peak)


def first_micro_batch(trainer: Trainer) -> dict[str, Tensor]:
    """The first samples of the run as the data loader would give them: real ids, real document bounds."""
    size = trainer.args.train_batch_size
    return dict(trainer.data_collator([trainer.train_dataset[index] for index in range(size)]))


def stand_ins(module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Parameters that share memory with the module's (copies where the dtype differs), and copied buffers."""
    parameters: dict[str, Tensor] = {
        name: nn.Parameter(parameter.detach().to(dtype or parameter.dtype), parameter.requires_grad)
        for name, parameter in module.named_parameters()
    }
    return parameters | {name: buffer.clone() for name, buffer in module.named_buffers()}


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's random generators are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.train()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def layers_recomputed(model: Any, arguments: Any) -> Iterator[None]:
    """Activation checkpointing as Trainer will switch it on, off again afterwards."""
    if not recomputes(arguments):
        yield
        return
    new_name = hasattr(model, "activation_checkpointing_enable")
    name = "activation_checkpointing" if new_name else "gradient_checkpointing"
    getattr(model, f"{name}_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{name}_disable")()
