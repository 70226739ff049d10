"""Tokens a second, hours, GPU-hours, money and energy of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.architecture import Architecture
from ..models.fields import PlanError
from .flops import count_flops
from .hardware import Gpu
from .memory import TrainingSetup

SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class TrainingCost:
    """What a run takes.

    Args:
        energy_kwh: GPUs at their power limit for the whole time, times the overhead of the room; None where
            the power is not known.
        usd: None without a price.
    """

    tokens: float
    tokens_per_second: float
    hours: float
    gpu_hours: float
    energy_kwh: float | None
    usd: float | None


@dataclass(frozen=True)
class RateForecast:
    """What is expected of a run on a GPU of the table; nothing in it was measured."""

    mfu: float
    mfu_source: str
    tokens_per_second: float
    step_seconds: float
    hours: float


def forecast_rate(architecture: Architecture, setup: TrainingSetup, gpu: Gpu, tokens: float) -> RateForecast:
    """Speed and time of ``tokens`` by the MFU that is typical of the GPU.

    Raises:
        PlanError: no MFU is known for it, or not for this precision.
    """
    if not setup.precision.startswith("bf16"):
        raise PlanError(f"typical MFUs are of bf16 training, not {setup.precision}")
    if gpu.typical_mfu is None:
        raise PlanError(f"no MFU is known for {gpu.name}")
    flops = count_flops(architecture, setup.sequence_length).training_per_token
    rate = training_rate(setup.num_ranks, gpu.bf16_flops, gpu.typical_mfu, flops)
    step_tokens = setup.tokens * setup.accumulation * setup.num_ranks
    cost = training_cost(tokens, rate, setup.num_ranks)
    return RateForecast(gpu.typical_mfu, gpu.mfu_source, rate, step_tokens / rate, cost.hours)


def training_rate(num_gpus: int, peak_flops: float, mfu: float, flops_per_token: float) -> float:
    """Tokens a second of all GPUs: GPUs x dense peak x MFU / training FLOPs of a token."""
    return num_gpus * peak_flops * mfu / flops_per_token


def training_cost(
    tokens: float,
    tokens_per_second: float,
    num_gpus: int,
    uptime: float = 1.0,
    power_w: float | None = None,
    power_overhead: float = 1.0,
    usd_per_gpu_hour: float | None = None,
) -> TrainingCost:
    """Time, money and energy of ``tokens`` at a rate.

    Args:
        uptime: part of the time in which the run makes progress (restarts, evaluation, saving).
        power_overhead: the room's power over the GPUs' own (PUE and the host).
    """
    hours = tokens / tokens_per_second / SECONDS_PER_HOUR / uptime
    gpu_hours = hours * num_gpus
    energy = None if power_w is None else gpu_hours * power_w * power_overhead / 1000
    usd = None if usd_per_gpu_hour is None else gpu_hours * usd_per_gpu_hour
    return TrainingCost(tokens, tokens_per_second, hours, gpu_hours, energy, usd)
