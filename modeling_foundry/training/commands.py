"""The commands of ``recipes/pretrain.py``: without one, pretrain."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal

from ..settings import FoundryError, parse, parse_command
from .run_log import LOG_NAME
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


@dataclass
class ReplaySettings:
    """Which optimizer step of which run to show."""

    run_dir: str = field(metadata={"help": "run folder (runs/<experiment>/pretrain)"})
    step: int | None = field(default=None, metadata={"help": "optimizer step, counted from 1"})
    samples: list[int] | None = field(
        default=None,
        metadata={"help": "in place of a step: samples named in skipped_updates.jsonl, also of a rollback"},
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "folder of a model: its loss on each sequence is printed too"}
    )
    max_characters: int = field(default=400, metadata={"help": "shown of each document; 0 shows all"})
    max_sequences: int = field(default=64, metadata={"help": "shown of the step; 0 shows all"})

    def __post_init__(self) -> None:
        if (self.step is None) == (self.samples is None):
            raise FoundryError("step: give it or samples, one of the two")
        for name, lowest in (("step", 1), ("max_characters", 0), ("max_sequences", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise FoundryError(f"{name}: expected at least {lowest}, found {value}")


# name -> settings, a line for --help, module:function in this package, imported when needed
COMMANDS: dict[str, tuple[type, str, str]] = {
    "plot": (PlotSettings, "the training panels of one run, or several compared", "plotting:plot"),
    "replay": (ReplaySettings, "the documents that one optimizer step of a run read", "replay:replay"),
}


def main(argv: Sequence[str] | None = None, description: str = "") -> None:
    """Run one command; without one, pretrain.

    Raises:
        FoundryError: bad input, in one line.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        kinds = {name: (kind, words) for name, (kind, words, _) in COMMANDS.items()}
        name, settings = parse_command(kinds, arguments, description)
        module, function = COMMANDS[name][2].split(":")
        getattr(import_module(f".{module}", __package__), function)(settings)
        return
    from .model_settings import ModelSettings  # torch and transformers, which a picture does not need
    from .pretraining import PretrainArguments, PretrainDataSettings, pretrain

    parsed = parse(
        ModelSettings, PretrainDataSettings, PretrainArguments, argv=arguments, description=description
    )
    pretrain(*parsed)
