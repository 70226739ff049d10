"""The commands of ``recipes/plan.py``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..settings import parse_command
from .forward import model_report
from .options import ModelCommand

Report = dict[str, Any]


def _print_model(report: Report) -> None:
    from .tables import print_model

    print_model(report)


# name -> (settings, line of help, report, how it is printed)
COMMANDS: dict[str, tuple[type, str, Callable[[Any], Report], Callable[[Report], None]]] = {
    "model": (ModelCommand, "parameters, FLOPs, memory, time and money of a model", model_report, _print_model),
}


def main(argv: Sequence[str] | None = None, description: str = "") -> None:
    """Run one command.

    Raises:
        FoundryError: bad input, in one line.
    """
    arguments = _with_underscores(sys.argv[1:] if argv is None else argv)
    kinds = {name: (kind, line) for name, (kind, line, _, _) in COMMANDS.items()}
    name, command = parse_command(kinds, arguments, description)
    _, _, report_of, show = COMMANDS[name]
    report = report_of(command)
    if command.json:
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        show(report)


def _with_underscores(argv: Sequence[str]) -> list[str]:
    """``--gpu-peak`` is ``--gpu_peak``."""
    return [
        re.sub(r"^--[a-z-]+", lambda match: "--" + match.group()[2:].replace("-", "_"), argument)
        for argument in argv
    ]
