"""``log.jsonl``, the record of a run: one JSON object a line, appended, whole after any crash.

Every line has ``event``, ``step`` and ``time``.  docs/pretrain.md lists the fields.
"""

from __future__ import annotations

import json
import logging
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import NoneType
from typing import Any

from ...files import read_lines, write_atomically
from ...settings import FoundryError

LOG_NAME = "log.jsonl"
Line = dict[str, Any]
NUMBER = (int, float, NoneType)  # null is one that was not finite
KINDS: dict[str, Any] = {
    "config": dict, "hardware": dict, "model": dict, "run_name": (str, NoneType), "loss": NUMBER,
    "eval_loss": NUMBER, "tokens": NUMBER, "training_seconds": NUMBER, "evaluation_seconds": NUMBER,
    "checkpoint_seconds": NUMBER,
}  # fmt: skip
logger = logging.getLogger(__name__)


class LogFile:
    """Appends lines; only the main process has one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def append(self, line: Line) -> None:
        """Write one line in one piece.  A number that is not finite becomes null: JSON has no word for it."""
        text = json.dumps(_finite(line), allow_nan=False, ensure_ascii=False)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def sync(self) -> None:
        """Flush to disk, before a checkpoint that would outlive the lines of its steps."""
        if self.path.exists():
            with open(self.path, "rb") as file:
                os.fsync(file.fileno())

    def go_on_after(self, step: int) -> list[Line]:
        """Drop the lines of steps that a run resumed at ``step`` takes again; the rest, in order.

        A fresh start (step 0) keeps nothing.  An ``end`` line is dropped too: the end is still to come.
        """
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return []
        if not self.path.is_file():
            raise FoundryError(f"{self.path}: not a file, and the run writes its log there; move it away")
        kept = [line for line in self._readable() if step and _belongs(line, step)]
        write_atomically(self.path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))
        return kept

    def _readable(self) -> list[Line]:
        lines = []
        written = read_lines(self.path, errors="replace")
        for number, text in enumerate(written, start=1):
            line = _line_of(text)
            if line is not None:
                lines.append(line)
            elif number < len(written):  # the last line may be torn by a kill; damage elsewhere is told
                logger.warning("%s:%d: not a line of a run log, left out: %.60s", self.path, number, text)
        return lines


def _line_of(text: str) -> Line | None:
    """One line of a log; None where it is torn or holds something else under a name that readers rely on."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    return line if all(isinstance(line[name], KINDS[name]) for name in KINDS.keys() & line.keys()) else None


def _belongs(line: Line, step: int) -> bool:
    return line["step"] <= step and line.get("event") != "end"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def read_log(run: str | Path) -> list[Line]:
    """The lines of a run folder's ``log.jsonl``, or of a log file, in order.

    Raises:
        FoundryError: no log there, or a line that is none.
    """
    path = Path(run) / LOG_NAME if Path(run).is_dir() else Path(run)
    try:
        written = read_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise FoundryError(f"{path}: cannot read a run log; give a run folder with {LOG_NAME}") from error
    lines = []
    for number, text in enumerate(written, start=1):
        line = _line_of(text)
        if line is not None:
            lines.append(line)
        elif number < len(written):
            raise FoundryError(f"{path}:{number}: not a line of a run log; expected a JSON object with step")
    return lines


def series(lines: list[Line], name: str, by: str = "step") -> tuple[list[float], list[float]]:
    """Values of one field and where they stand: (``by``, ``name``) of the lines that have both as numbers."""
    found = [line for line in lines if _is_number(line.get(by)) and _is_number(line.get(name))]
    return [line[by] for line in found], [line[name] for line in found]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def summary_of(lines: list[Line]) -> Line:
    """What a run came to: steps, losses, typical speed, where the time went.  Absent where not measured."""
    summary: Line = {
        "num_evaluations": sum("eval_loss" in line for line in lines),
        "num_checkpoints": sum(line.get("event") == "checkpoint" for line in lines),
        "num_resumes": sum(line.get("event") == "resume" for line in lines),
    }
    trained = [line for line in lines if "loss" in line]
    if trained:
        summary |= {"final_step": trained[-1]["step"], "final_train_loss": trained[-1]["loss"]}
    held_out = [(line["eval_loss"], line["step"]) for line in lines if _is_number(line.get("eval_loss"))]
    if held_out:
        summary["best_eval_loss"], summary["best_eval_step"] = min(held_out)
        summary["final_eval_loss"] = held_out[-1][0]
    for name in ("step_seconds", "tokens_per_second", "mfu", "mfu_causal", "data_wait_seconds"):
        values = series(lines, name)[1]
        if values:
            summary[f"median_{name}"] = median(values)
    for name in ("tokens", "training_seconds", "evaluation_seconds", "checkpoint_seconds"):
        values = series(lines, name)[1]
        if values:
            summary[name] = values[-1]
    peaks = series(lines, "memory_peak_bytes")[1]
    return summary | ({"memory_peak_bytes": max(peaks)} if peaks else {})
