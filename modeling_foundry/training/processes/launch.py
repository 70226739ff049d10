"""Ask, then assert: a launcher that fell back silently must not train.

``accelerate launch`` turns two CPU processes into one, ZeRO-1 into DDP and FSDP into unsynchronised
copies without an error when the machine does not fit the request.  Each recipe calls
:func:`assert_launched_as_asked` before it spends a second on training.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ...settings import FoundryError
from ..precision import Precision

ENGINE_WORDS = {"MULTI_CPU": "DDP", "MULTI_GPU": "DDP"}
ENGINE_FLAGS = {"ACCELERATE_USE_DEEPSPEED": "DEEPSPEED", "ACCELERATE_USE_FSDP": "FSDP"}


def assert_launched_as_asked(
    state: Any, precision: str, expected_processes: int | None, environment: Mapping[str, str] = os.environ
) -> str:
    """Compare what accelerate set up with what the launcher and the recipe asked for.

    Args:
        state: ``accelerate.state.AcceleratorState`` or ``PartialState`` after set-up.
        precision: mixed precision in force: ``no``, ``bf16``, ``fp16`` or ``fp8``.
        expected_processes: the recipe's own number of ranks; None accepts what the launcher started.

    Returns:
        One line for ``run.json`` and the run log, in accelerate's names; :func:`launch_words` is for people.

    Raises:
        FoundryError: naming the first thing that differs.
    """
    distributed_type = engine_of(state)
    asked_processes = int(environment.get("WORLD_SIZE", "1"))
    if state.num_processes != asked_processes:
        raise FoundryError(
            f"launch: {asked_processes} processes were started but {state.num_processes} train together; "
            "set use_cpu: true in the accelerate configuration on a machine without GPUs"
        )
    if expected_processes is not None and state.num_processes != expected_processes:
        raise FoundryError(
            f"launch: expected_processes is {expected_processes} but {state.num_processes} process(es) train; "
            "start with accelerate launch --config_file and a file of accelerate_configs/ that fits"
        )
    for flag, engine in ENGINE_FLAGS.items():
        if environment.get(flag, "false").lower() in ("true", "1") and distributed_type != engine:
            raise FoundryError(f"launch: {engine} was asked for but accelerate set up {distributed_type}")
    asked_precision = environment.get("ACCELERATE_MIXED_PRECISION", precision)
    if asked_precision != precision:
        raise FoundryError(
            f"launch: the accelerate configuration asks for mixed_precision {asked_precision}, "
            f"the recipe for {precision}; give the same in both"
        )
    device = str(state.device)
    return f"{distributed_type}, {state.num_processes} process(es), mixed precision {precision}, {device}"


def launch_words(state: Any, precision: Precision) -> str:
    """The same for a person: ``2 processes on the CPU, DDP; parameters float32, masters float32, compute float32``.

    Args:
        state: ``accelerate.state.AcceleratorState`` after set-up.
        precision: the dtypes in force.
    """
    num, device = state.num_processes, str(state.device)
    place = "the CPU" if device == "cpu" else device
    if num == 1:
        words = [f"1 process on {place}", *([] if engine_of(state) == "NO" else [_engine(state)])]
    elif device == "cpu":
        words = [f"{num} processes on {place}", _engine(state)]
    else:
        words = [f"{num} processes", _engine(state), f"rank 0 on {place}"]
    return f"{', '.join(words)}; {precision}"


def _engine(state: Any) -> str:
    kind = engine_of(state)
    if kind == "DEEPSPEED":
        return f"ZeRO-{state.deepspeed_plugin.zero_stage}"
    if kind == "FSDP":
        return "FSDP2" if state.is_fsdp2 else "FSDP"
    return ENGINE_WORDS.get(kind, kind)


def engine_of(state: Any) -> str:
    """accelerate's name of the back end: ``NO``, ``MULTI_GPU``, ``DEEPSPEED``, ``FSDP``."""
    return str(state.distributed_type).rsplit(".", 1)[-1]
