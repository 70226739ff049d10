"""Runs as their logs tell them: what the panels of ``plot`` and its table are made of.  No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...settings import FoundryError
from ..log.log_file import LOG_NAME, Line, read_log, series, summary_of

Axis = Literal["tokens", "steps", "hours"]
AXIS_FIELD = {"tokens": "tokens", "steps": "step", "hours": "training_seconds"}


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: what it is called in a legend.
        lines: its log, in order.
    """

    name: str
    lines: list[Line]

    @property
    def start(self) -> Line:
        """The line the newest process began with; logs of older versions have none."""
        begun = [line for line in self.lines if line.get("event") in ("start", "resume")]
        return begun[-1] if begun else {}

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the training arguments."""
        start: Line = next((line for line in self.lines if "config" in line), {})
        return start.get("config", {}).get("training") or {}

    def series(self, name: str, axis: Axis = "tokens", scale: float = 1.0) -> tuple[list[float], list[float]]:
        """Places on an axis and values of a field; hours are hours of training."""
        places, values = series(self.lines, name, AXIS_FIELD[axis])
        if axis == "hours":
            places = [place / 3600 for place in places]
        return places, [value * scale for value in values]

    def resumes(self, axis: Axis = "tokens") -> list[float]:
        """Where the run was taken up again: the last line before it says."""
        places, last = [], 0.0
        for line in self.lines:
            if line.get("event") == "resume":
                places.append(last)
            last = line.get(AXIS_FIELD[axis], last)
        return [place / 3600 for place in places] if axis == "hours" else places

    def summary(self) -> Line:
        return summary_of(self.lines)


def read_runs(paths: list[str], names: list[str] | None = None) -> list[Run]:
    """The runs behind folders or log files, each with a name of its own.

    Raises:
        FoundryError: no log, no training in it, or as many names as there are not runs.
    """
    if names is not None and len(names) != len(paths):
        raise FoundryError(f"names: expected {len(paths)}, one for each of runs, found {len(names)}")
    logs = [read_log(path) for path in paths]
    for path, lines in zip(paths, logs, strict=True):
        if not any("loss" in line for line in lines):
            raise FoundryError(f"{path}: its log has no training step yet; nothing to draw")
    chosen = names or [_name(path, lines) for path, lines in zip(paths, logs, strict=True)]
    if len(set(chosen)) < len(chosen):
        chosen = [str(path) for path in paths]
    return [Run(name, lines) for name, lines in zip(chosen, logs, strict=True)]


def _name(path: str, lines: list[Line]) -> str:
    told = next((line["run_name"] for line in lines if line.get("run_name")), None)
    folder = Path(path).parent if Path(path).name == LOG_NAME else Path(path)
    return told or "-".join(folder.resolve().parts[-2:])


def short_count(number: float) -> str:
    """Tokens and parameters in three figures: 1.97M, 105B."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def title_of(run: Run) -> str:
    """One line over the panels of one run."""
    model, hardware, summary = (
        run.start.get("model", {}),
        run.start.get("hardware", {}),
        run.summary(),
    )
    parts = [run.name]
    if "num_parameters" in model:
        parts.append(f"{model['num_parameters']:,} parameters")
    if "tokens" in summary:
        parts.append(f"{short_count(summary['tokens'])} tokens")
    if hardware:
        device = hardware.get("gpu_name") or hardware.get("device", "device").upper()
        parts.append(f"{hardware.get('num_ranks', '?')} x {device}")
    return ", ".join(parts)
