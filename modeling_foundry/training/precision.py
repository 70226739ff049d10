"""Which dtype the parameters, their masters and the products have: decided and told here alone.

Updates are smaller than bfloat16 can tell apart from the weights, so what is trained is held in float32, or has
float32 masters, however its folder was saved.  What is frozen keeps the type it was saved in.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from ..saved_model import load_model

DEEPSPEED, FSDP = "DEEPSPEED", "FSDP"  # back ends that hold parameters otherwise than the model does
MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run.

    Args:
        parameters: of what is trained, as the back end holds it.
        masters: what updates are added to; None where that is the parameters, in less than float32.
        compute: of the matrix products, in words.
        frozen: of the base under an adapter; None where everything is trained.
    """

    parameters: torch.dtype
    masters: torch.dtype | None
    compute: str
    frozen: torch.dtype | None = None

    def __str__(self) -> str:
        base = "" if self.frozen is None else f" on a frozen {name_of(self.frozen)} base"
        masters = "no masters" if self.masters is None else f"masters {name_of(self.masters)}"
        return f"parameters {name_of(self.parameters)}{base}, {masters}, compute {self.compute}"


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def precision_of(arguments: Any) -> str:
    """The mixed precision asked for, in accelerate's words: ``no``, ``bf16`` or ``fp16``."""
    return "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "no"


def load_for_training(folder: str | Path, is_frozen: bool, mixed_precision: str, **options: Any) -> Any:
    """The model of a folder in the dtype it is to be trained from.

    Args:
        is_frozen: only an adapter on it is trained (which is float32 always), so it stays as it was saved.
        mixed_precision: float16 alone computes in float16 without a loss scale, in which gradients would vanish.
        options: of ``from_pretrained``.
    """
    model = load_model(folder, dtype="auto" if is_frozen else torch.float32, **options)
    return model.float() if model.dtype == torch.float16 and mixed_precision == "no" else model


def merged(trainer: Trainer) -> Any:
    """The base with its adapter merged, in float32 where it is written: less would round away what was learned.

    A base in less than float32 is converted in host memory, and only by the process that writes.
    """
    model = trainer.model
    is_whole = not trainer.is_fsdp_enabled  # else each rank has a part, and all gather it when it is written
    if (
        is_whole
        and trainer.args.should_save
        and any(weight.dtype != torch.float32 for weight in model.parameters())
    ):
        model = model.to("cpu").float()
    return model.merge_and_unload()


def stored_dtype(engine: str, arguments: Any) -> torch.dtype | None:
    """The dtype that the back end will hold parameters in; None leaves each as it is."""
    return MIXED.get(precision_of(arguments)) if engine == DEEPSPEED else None


def precision_in_force(model: torch.nn.Module, arguments: Any, engine: str) -> Precision:
    """The dtypes of a run that is about to begin.

    Args:
        model: before accelerate wraps it.
        engine: what holds the parameters: ``DEEPSPEED``, ``FSDP``, or any other of accelerate's names.
    """
    trained, frozen = _dtype(model, True) or torch.float32, _dtype(model, False)
    masters = torch.float32 if has_masters(trained, arguments, engine) else None
    trained = _trained_dtype(trained, arguments, engine)
    frozen = frozen and (stored_dtype(engine, arguments) or frozen)
    compute = _compute(MIXED.get(precision_of(arguments), frozen or trained), arguments)
    return Precision(trained, masters, compute, frozen)


def has_masters(loaded: torch.dtype, arguments: Any, engine: str) -> bool:
    """Whether updates of parameters ``loaded`` in a dtype are added to float32."""
    return engine == DEEPSPEED or _trained_dtype(loaded, arguments, engine) == torch.float32


def engine_of_sharding(sharding: str) -> str:
    """The planner's word for a back end in the terms of this module."""
    return DEEPSPEED if sharding.startswith("zero") else FSDP if sharding.startswith("fsdp") else "NO"


def _trained_dtype(loaded: torch.dtype, arguments: Any, engine: str) -> torch.dtype:
    if engine == FSDP and precision_of(arguments) != "no":
        return torch.float32  # as accelerate makes them
    return stored_dtype(engine, arguments) or loaded


def compute_precision(arguments: Any, model: Any) -> str:
    """Of the matrix products, in the planner's words: what autocast makes of them, else the parameters' own."""
    dtype = MIXED.get(precision_of(arguments), model.dtype)
    return {torch.bfloat16: "bf16", torch.float16: "fp16"}.get(dtype, "fp32")


def _compute(dtype: torch.dtype, arguments: Any) -> str:
    compute = name_of(dtype)
    if getattr(arguments, "float8", False):
        return f"{compute} with fp8 products"
    return "float32 with TF32 products" if compute == "float32" and arguments.tf32 else compute


def _dtype(model: torch.nn.Module, is_trained: bool) -> torch.dtype | None:
    """Of most of the values that are trained, or that are not; None where there are none."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        if parameter.requires_grad == is_trained and parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None
