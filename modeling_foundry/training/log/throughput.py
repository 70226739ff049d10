"""Where the seconds of a run go, tokens per second, and MFU: evaluation and checkpoints are no training time.

MFU is model FLOPs a second over the dense peak of the devices (PaLM, arXiv:2204.02311, appendix B).  The FLOPs of
a token are the planner's, in both its conventions; a device or a precision without a dense peak in the planner's
table gets no MFU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...planning.formulas.flops import training_flops_per_token
from ...planning.formulas.hardware import gpu_of_device
from ...planning.models.families import architecture_of

TRAINING, EVALUATION, CHECKPOINT = "training", "evaluation", "checkpoint"
ACTIVITIES = (TRAINING, EVALUATION, CHECKPOINT)


def synchronize_device() -> None:
    """Wait for kernels already queued: they belong to training, not to what comes next."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


class RunClock:
    """Seconds of a run by activity; one activity runs at a time, and waiting for data is part of training.

    Args:
        now: a monotonic clock in seconds.
        synchronize: called before training stands still, never inside it.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        synchronize: Callable[[], None] = synchronize_device,
    ) -> None:
        self.now, self._synchronize = now, synchronize
        self.seconds = dict.fromkeys(ACTIVITIES, 0.0)
        self.data_wait_seconds = 0.0
        self._activity: str | None = None
        self._since = 0.0

    def switch(self, activity: str | None) -> None:
        """Count from now on for ``activity``; None stops the clock."""
        if activity == self._activity:
            return
        if self._activity == TRAINING:
            self._synchronize()
        now = self.now()
        if self._activity is not None:
            self.seconds[self._activity] += now - self._since
        self._activity, self._since = activity, now

    def read(self, activity: str = TRAINING) -> float:
        """Seconds of ``activity`` up to now."""
        running = self.now() - self._since if self._activity == activity else 0.0
        return self.seconds[activity] + running

    def go_on_from(self, totals: dict[str, Any]) -> None:
        """Start at the totals of a log line, so that a resumed run counts all its parts together."""
        for activity in ACTIVITIES:
            self.seconds[activity] = float(totals.get(f"{activity}_seconds") or 0.0)

    def totals(self) -> dict[str, float]:
        """``training_seconds``, ``evaluation_seconds`` and ``checkpoint_seconds`` since the start of the run."""
        return {f"{activity}_seconds": round(self.read(activity), 3) for activity in ACTIVITIES}


class TimedBatches:
    """Batches of a loader; the clock counts how long each was waited for.

    Args:
        is_device_busy: asked when a batch has come; a wait that the device worked through costs nothing.
    """

    def __init__(
        self, batches: Iterator[Any], clock: RunClock, is_device_busy: Callable[[], bool] = lambda: False
    ) -> None:
        self.batches, self.clock, self.is_device_busy = batches, clock, is_device_busy

    def __iter__(self) -> TimedBatches:
        return self

    def __next__(self) -> Any:
        self.clock.switch(TRAINING)  # whatever came before, evaluation or checkpoint, has ended
        asked = self.clock.now()
        try:
            return next(self.batches)
        finally:
            if not self.is_device_busy():
                self.clock.data_wait_seconds += self.clock.now() - asked


@dataclass(frozen=True)
class ModelFlops:
    """What tokens per second are multiplied with and divided by.

    Args:
        full_per_token, causal_per_token: training FLOPs of one token, in the planner's two conventions.
        num_ranks: devices that train together.
        peak_flops: dense FLOP/s of one device; None where no figure is known.
        denominator: the peak in words, or why there is none.
    """

    full_per_token: float
    causal_per_token: float
    num_ranks: int
    peak_flops: float | None
    denominator: str

    def rates(self, tokens_per_second: float) -> dict[str, float | None]:
        """MFU as a share of 1 in both conventions, and TFLOP/s of one rank (full attention).

        Args:
            tokens_per_second: of all ranks together.
        """
        per_rank = tokens_per_second / self.num_ranks
        full, causal = per_rank * self.full_per_token, per_rank * self.causal_per_token
        peak = self.peak_flops
        return {
            "mfu": full / peak if peak else None,
            "mfu_causal": causal / peak if peak else None,
            "model_tflops_per_rank": full / 1e12,
        }


def model_flops(
    config: dict[str, Any], sequence_length: int, device_name: str | None, precision: str, num_ranks: int
) -> ModelFlops:
    """FLOPs of a model and the peak of the device it trains on.

    Args:
        config: the model's configuration as a dictionary.
        device_name: as the driver gives it; None is a CPU.
        precision: of the matrix products: ``bf16``, ``fp16`` or ``fp32``.

    Raises:
        PlanError: the planner does not know the architecture.
    """
    architecture = architecture_of(config)
    full = training_flops_per_token(architecture, sequence_length, "full")
    causal = training_flops_per_token(architecture, sequence_length, "causal")
    peak, words = _peak(device_name, precision)
    return ModelFlops(full, causal, num_ranks, peak, words)


def _peak(device_name: str | None, precision: str) -> tuple[float | None, str]:
    if device_name is None:
        return None, "no MFU: a CPU has no dense peak in the planner's table"
    gpu = gpu_of_device(device_name)
    if gpu is None:
        return None, f"no MFU: {device_name!r} is not in the planner's table of GPUs"
    if precision not in ("bf16", "fp16"):  # the same peak for both on every card of the table
        return None, f"no MFU: the planner's table has no {precision} peak of the {gpu.name}"
    return gpu.bf16_flops, f"{gpu.name}, dense bf16, {gpu.bf16_tflops:,.0f} TFLOP/s a rank"


class ThroughputMeter:
    """Rates over the steps since the last reading.

    Args:
        flops: None where the FLOPs of a token are not one number (alignment, where lengths differ).
    """

    def __init__(self, clock: RunClock, flops: ModelFlops | None = None) -> None:
        self.clock, self.flops = clock, flops
        self._last = (0, 0, 0.0, 0.0)

    def start(self, step: int, tokens: int, seconds: float | None = None) -> None:
        """Read from here: the step and tokens that the run begins with, and its clock there, if not now's."""
        now = self.clock.read() if seconds is None else seconds
        self._last = (step, tokens, now, self.clock.data_wait_seconds)

    def lap(self, step: int, tokens: int, reads_data: bool = False) -> dict[str, Any]:
        """Rates since the last call; none when no step or no time has passed.

        Args:
            tokens: trained on by all ranks since the start of the run.
            reads_data: whether the waits for data are timed.
        """
        now = (step, tokens, self.clock.read(), self.clock.data_wait_seconds)
        steps, new_tokens, seconds, waited = (b - a for a, b in zip(self._last, now, strict=True))
        self._last = now
        if steps <= 0 or seconds <= 0:
            return {}
        rate = new_tokens / seconds
        rates = {"num_steps": steps, "step_seconds": seconds / steps, "tokens_per_second": rate}
        if reads_data:
            rates["data_wait_seconds"] = waited / steps
        return rates | (self.flops.rates(rate) if self.flops is not None else {})
