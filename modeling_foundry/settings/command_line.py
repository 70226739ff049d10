"""Options and help of a recipe: ``--key=value`` for every field of its dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .conversion import arms_of, describe_type, takes_only_lists
from .errors import SettingsError


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"command line: {message}")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a docstring; shows ``--key VALUE``, and ``...`` only where a list is taken.

    argparse has no public hook for the second: every option is declared with ``nargs="*"``, so that a bare
    ``--flag`` and a list can be told apart by type later.
    """

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if isinstance(action, Option) and action.nargs == "*":
            return f"{action.metavar} ..." if action.takes_list else str(action.metavar)
        return super()._format_args(action, default_metavar)


class Option(argparse.Action):
    """Keeps an option as written and refuses a second use, which argparse would let win silently."""

    takes_list = False

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if hasattr(namespace, self.dest):
            raise SettingsError(f"command line: {self.dest}: given twice; keep one")
        setattr(namespace, self.dest, values)


def build_parser(
    kinds: Sequence[type], annotations: dict[str, Any], description: str, program: str | None = None
) -> Parser:
    program = program or Path(sys.argv[0]).name
    parser = Parser(
        prog=program,
        usage=f"{program} [--config FILE] [--key=value ...]",
        description=description.strip().replace("%", "%%"),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=True,
    )
    parser.add_argument(
        "--config", metavar="FILE", action=Option, default=argparse.SUPPRESS, help="flat YAML file"
    )
    for kind in kinds:
        group = parser.add_argument_group(kind.__name__)
        for field in dataclasses.fields(kind):
            if field.init:
                option = group.add_argument(
                    f"--{field.name}",
                    nargs="*",
                    action=Option,
                    default=argparse.SUPPRESS,
                    metavar=_metavar(field.name, annotations[field.name]),
                    help=_help_line(field, annotations[field.name]),
                )
                assert isinstance(option, Option)
                option.takes_list = takes_only_lists(annotations[field.name])
    return parser


def _metavar(name: str, annotation: Any) -> str:
    return "BOOL" if annotation is bool else name.rsplit("_", 1)[-1].upper()


def _help_line(field: dataclasses.Field[Any], annotation: Any) -> str:
    """What the setting is, what it takes, and its default as it would be written in YAML."""
    arms = arms_of(annotation)
    accepted = " or ".join(dict.fromkeys(describe_type(arm) for arm in arms if arm is not type(None)))
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        accepted += "; required"
    elif default not in (None, "", [], {}):
        accepted += f"; default {_as_yaml(default)}"
    return " ".join(f"{field.metadata.get('help', '')} [{accepted}]".split()).replace("%", "%%")


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_as_yaml(item) for item in value)}]"
    return str(value.value if isinstance(value, enum.Enum) else value)


def suggestion(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; accepted: {', '.join(known)}" if len(known) <= 40 else "; --help lists the accepted keys"
