"""The commands of ``recipes/plan.py``: what each reads, reports, prints and draws."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

from ..settings import parse_command
from .formulas.hardware import GPUS
from .options import (
    BudgetCommand,
    FitCommand,
    GpusCommand,
    ModelCommand,
    SearchCommand,
    ServeCommand,
)

Report = dict[str, Any]


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        report, show, draw: ``module:function`` in this package, imported when needed: only a search pays for
            numpy, only a picture for matplotlib.
    """

    settings: type
    help: str
    report: str
    show: str
    draw: str | None = None


COMMANDS = {
    "model": Command(
        ModelCommand, "a model's parameters, FLOPs, memory, time and cost", "reports.model:model_report",
        "display.tables:print_model", "display.figures:draw_model",
    ),
    "fit": Command(
        FitCommand, "the largest micro-batch that fits a GPU, and how to shard", "reports.fit:fit_report",
        "display.tables:print_fit", "display.figures:draw_memory",
    ),
    "serve": Command(
        ServeCommand, "memory of generation: weights and cache, batch and context", "reports.serve:serve_report",
        "display.tables:print_serve",
    ),
    "budget": Command(
        BudgetCommand, "what to train with GPU-hours, FLOPs or money: N, D and the loss",
        "reports.budget:budget_report", "display.budget_tables:print_budget", "display.figures:draw_budget",
    ),
    "search": Command(
        SearchCommand, "the architecture for a budget, and its recipes (--emit)", "reports.search:search_report",
        "display.budget_tables:print_search",
    ),
    "gpus": Command(
        GpusCommand, "the table of GPUs, with sources", "commands:gpus_report", "display.tables:print_gpus"
    ),
}  # fmt: skip


def gpus_report(command: GpusCommand) -> Report:
    """The table of GPUs, ready for JSON."""
    return {"gpus": [asdict(gpu) for gpu in GPUS]}


def main(argv: Sequence[str] | None = None, description: str = "") -> None:
    """Run one command.

    Raises:
        FoundryError: bad input, in one line.
    """
    arguments = _with_underscores(sys.argv[1:] if argv is None else argv)
    kinds = {name: (command.settings, command.help) for name, command in COMMANDS.items()}
    name, settings = parse_command(kinds, arguments, description)
    command = COMMANDS[name]
    report = _function(command.report)(settings)
    folder = settings.plot_folder()
    if folder is not None and command.draw is not None:
        report["pictures"] = _function(command.draw)(report, folder)
    if settings.json:
        print(json.dumps(report, indent=2, allow_nan=False))
        return
    _function(command.show)(report)
    for path in report.get("pictures", []):
        print(f"drew {path}")


def _function(where: str) -> Callable[..., Any]:
    module, name = where.split(":")
    return getattr(import_module(f".{module}", __package__), name)


def _with_underscores(argv: Sequence[str]) -> list[str]:
    """``--gpu-peak`` is ``--gpu_peak``."""
    return [
        re.sub(r"^--[a-z-]+", lambda match: "--" + match.group()[2:].replace("-", "_"), argument)
        for argument in argv
    ]
