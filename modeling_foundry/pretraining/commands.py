"""The commands of ``recipes/pretrain.py``: without one, pretrain."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module

from ..settings import FoundryError, parse, parse_command
from ..training.plots.settings import PlotSettings


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


# name -> settings, a line for --help, module:function of modeling_foundry, imported when needed
COMMANDS: dict[str, tuple[type, str, str]] = {
    "plot": (PlotSettings, "the training panels of one run, or several compared", "training.plots.plot:plot"),
    "replay": (
        ReplaySettings,
        "the documents that one optimizer step of a run read",
        "pretraining.replay:replay",
    ),
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
        getattr(import_module(f"modeling_foundry.{module}"), function)(settings)
        return
    from .model_settings import ModelSettings  # torch and transformers, which a picture does not need
    from .pipeline import PretrainArguments, PretrainDataSettings, pretrain

    parsed = parse(
        ModelSettings, PretrainDataSettings, PretrainArguments, argv=arguments, description=description
    )
    pretrain(*parsed)
