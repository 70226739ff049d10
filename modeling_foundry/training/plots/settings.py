"""The settings of ``pretrain.py plot``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...settings import FoundryError
from ..log.log_file import LOG_NAME
from .runs import Axis


@dataclass
class PlotSettings:
    """Which runs to draw, and against what."""

    runs: list[str] = field(metadata={"help": "run folders (runs/<experiment>/<stage>) or log files"})
    output_dir: str | None = field(default=None, metadata={"help": "default: plots inside the first run"})
    names: list[str] | None = field(
        default=None, metadata={"help": "what the runs are called in the picture"}
    )
    against: Axis = field(default="tokens", metadata={"help": "horizontal axis"})
    theme: Literal["both", "light", "dark"] = field(default="both", metadata={"help": "background"})

    def __post_init__(self) -> None:
        if not self.runs:
            raise FoundryError("runs: expected at least one run folder")

    @property
    def folder(self) -> Path:
        first = Path(self.runs[0])
        default = (first.parent if first.name == LOG_NAME else first) / "plots"
        return Path(self.output_dir) if self.output_dir else default
