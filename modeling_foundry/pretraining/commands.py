"""The commands of ``recipes/pretrain.py``: without one, pretrain."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from ..settings import parse, parse_command
from ..training.plots.settings import PlotSettings
from .settings import ReplaySettings

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
