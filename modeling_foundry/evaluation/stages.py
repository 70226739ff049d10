"""What the stages before evaluation left on disk: their record, their log, how long they took."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import read_lines
from ..settings import FoundryError


@dataclass(frozen=True)
class Stage:
    """One run folder.

    Args:
        record: ``run.json``: settings, commit, versions, machine; empty where the folder has none.
        complete: ``complete.json``: steps and seconds of a finished run.
        log: lines of ``log.jsonl`` in order.
    """

    name: str
    record: dict[str, Any] = field(default_factory=dict)
    complete: dict[str, Any] = field(default_factory=dict)
    log: tuple[dict[str, Any], ...] = ()

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one log field."""
        pairs = [(line["step"], line[key]) for line in self.log if key in line and "step" in line]
        return [step for step, _ in pairs], [value for _, value in pairs]


def stages_of(models: dict[str, Path]) -> list[Stage]:
    """The run folders that hold the models (``<stage>/model``), each once, in order."""
    folders = dict.fromkeys(path.parent for path in models.values())
    return [stage for folder in folders if (stage := read_stage(folder)).record or stage.log]


def read_stage(folder: Path) -> Stage:
    """One run folder; a checkpoint that came from elsewhere has neither record nor log.

    Raises:
        FoundryError: a file of the run is torn.
    """
    return Stage(
        folder.name,
        _object(folder / "run.json"),
        _object(folder / "complete.json"),
        _lines(folder / "log.jsonl"),
    )


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return _parsed(path, path.read_text(encoding="utf-8"), path)


def _lines(path: Path) -> tuple[dict[str, Any], ...]:
    if not path.is_file():
        return ()
    return tuple(
        _parsed(path, line, f"{path}:{number}") for number, line in enumerate(read_lines(path), start=1)
    )


def _parsed(path: Path, text: str, where: Path | str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FoundryError(f"{where}: not valid JSON; run the {path.parent.name} stage again") from error
    if not isinstance(value, dict):
        raise FoundryError(f"{where}: not a JSON object; run the {path.parent.name} stage again")
    return value
