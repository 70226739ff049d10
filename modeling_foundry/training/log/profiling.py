"""Where the device time of one optimizer step goes, by group of kernels."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...files import write_atomically
from ...settings import setting
from .throughput import synchronize_device

# The first pattern that a name matches says its group.  Names of kernels on a GPU, of operators on a CPU.
GROUPS = (
    ("collectives", r"nccl|c10d::|gloo"),
    ("compiled pointwise", r"^triton_|graph_\d"),  # their names list the operators they replace
    ("attention", r"flash|fmha|sdpa|attention|flex_|cudnn::fusion"),
    ("loss", r"softmax_cross_entropy|float8_gradient|softmax|nll_loss"),
    ("matrix products", r"gemm|nvjet|cutlass|xmma|scaled_mm|aten::(add)?b?mm|mkldnn"),
    ("rounding to fp8", r"float8|fp8|f8e"),
    ("optimizer and clipping", r"multi_tensor_apply|adam|foreach|lpnorm|linalg_vector_norm"),
    ("copies and fills", r"memcpy|memset|copy|fill|zero_|CatArray"),
)
OTHER = "other"
NAMES_PER_GROUP = 5
NAME_LENGTH = 120


@dataclass
class ProfileKeys:
    """Key of a recipe that profiles a step, mixed into its training arguments."""

    profile_step: int | None = setting(
        "profile this optimizer step (a late one: the first compile) into profile-step-N.json",
        None,
        neutral=True,
    )


@dataclass(frozen=True)
class KernelTime:
    """One launch of a kernel (or one operator on a CPU), in microseconds since the profile began."""

    name: str
    start: float
    duration: float

    @property
    def end(self) -> float:
        return self.start + self.duration


def group_of(name: str) -> str:
    """The group that a kernel's or operator's name belongs to."""
    return next((group for group, pattern in GROUPS if re.search(pattern, name, re.IGNORECASE)), OTHER)


def busy_microseconds(kernels: Iterable[KernelTime]) -> float:
    """Time in which at least one kernel ran; streams that overlap count once."""
    busy, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        busy += max(0.0, kernel.end - max(end, kernel.start))
        end = max(end, kernel.end)
    return busy


def longest_waits(
    kernels: Iterable[KernelTime], num_places: int | None = NAMES_PER_GROUP
) -> dict[str, dict[str, float]]:
    """Milliseconds and number of the gaps in which no kernel ran, by the kernels before and after, longest first."""
    gaps: dict[str, list[float]] = defaultdict(list)
    before: KernelTime | None = None
    for kernel in sorted(kernels, key=lambda kernel: kernel.start):
        if before is not None and kernel.start > before.end:
            gaps[f"{before.name[:NAME_LENGTH]} -> {kernel.name[:NAME_LENGTH]}"].append(
                kernel.start - before.end
            )
        if before is None or kernel.end > before.end:
            before = kernel
    longest = sorted(gaps, key=lambda place: -sum(gaps[place]))[:num_places]
    return {place: {"milliseconds": sum(gaps[place]) / 1e3, "gaps": len(gaps[place])} for place in longest}


def by_group(kernels: list[KernelTime]) -> dict[str, dict[str, Any]]:
    """Milliseconds, launches and the names that cost most, of each group, the costliest first."""
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for kernel in kernels:
        times[group_of(kernel.name)][kernel.name].append(kernel.duration)
    groups: dict[str, dict[str, Any]] = {
        group: {
            "milliseconds": sum(map(sum, names.values())) / 1e3,
            "launches": sum(map(len, names.values())),
            "costliest": {
                name[:NAME_LENGTH]: {"milliseconds": sum(names[name]) / 1e3, "launches": len(names[name])}
                for name in sorted(names, key=lambda name: -sum(names[name]))[:NAMES_PER_GROUP]
            },
        }
        for group, names in times.items()
    }
    return dict(sorted(groups.items(), key=lambda item: -item[1]["milliseconds"]))


class StepProfile(TrainerCallback):
    """Profiles optimizer step ``step`` on rank 0; ``profile-step-N.json`` is there when it has ended.

    The profiler slows the step a little: its wall time is not a measurement of speed.
    """

    def __init__(self, step: int, output_dir: str | Path) -> None:
        self.step, self.path = step, Path(output_dir) / f"profile-step-{step}.json"
        self._profile: profile | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step + 1 == self.step and state.is_world_process_zero:
            synchronize_device()
            on_gpu = args.device.type == "cuda"
            self._profile = profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU])
            self._profile.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._profile is None:
            return
        synchronize_device()
        self._profile.stop()
        kernels = _kernels(self._profile, on_gpu=args.device.type == "cuda")
        self._profile = None
        groups = by_group(kernels)
        content = {
            "step": self.step,
            "micro_batches": args.gradient_accumulation_steps,
            "busy_milliseconds": busy_microseconds(kernels) / 1e3,
            "span_milliseconds": _span(kernels) / 1e3,
            "groups": groups,
            "longest_waits": longest_waits(kernels),
        }
        write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def _kernels(finished: profile, on_gpu: bool) -> list[KernelTime]:
    """Kernels of the GPU; on a CPU operators, each without those it called."""
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        KernelTime(
            event.name, event.time_range.start,
            event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total,
        )
        for event in finished.events() or ()
        if event.device_type == wanted
    ]  # fmt: skip


def _span(kernels: list[KernelTime]) -> float:
    if not kernels:
        return 0.0
    return max(kernel.end for kernel in kernels) - min(kernel.start for kernel in kernels)
