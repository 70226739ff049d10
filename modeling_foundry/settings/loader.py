"""Dataclasses from ``--config FILE`` and ``--key=value``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from .choices import nearest_name, with_choices
from .command_line import Parser, build_parser, suggestion
from .conversion import MismatchError, convert, describe_type, takes_bool, takes_only_lists
from .errors import SettingsError
from .written import Written, WrittenList, WrittenScalar, read_yaml, shown

T = TypeVar("T")


def setting(text: str, default: Any = dataclasses.MISSING, *, neutral: bool = False) -> Any:
    """A dataclass field with its line of ``--help``; required without a default.

    Args:
        neutral: changes where or how loudly something runs but nothing that is computed, so that a run goes on though
            it differs (:func:`neutral_settings`).
    """
    return dataclasses.field(default=default, metadata={"help": text, "neutral": neutral})


def neutral_settings(*instances: Any) -> set[str]:
    """Names of the fields that are marked neutral, of all these dataclass instances."""
    return {
        field.name
        for instance in instances
        for field in dataclasses.fields(instance)
        if field.metadata.get("neutral")
    }


def parse(
    *dataclass_types: type, argv: Sequence[str] | None = None, description: str = ""
) -> tuple[Any, ...]:
    """Build one instance of each dataclass from ``--config FILE`` and ``--key=value`` overrides.

    Raises:
        SettingsError: naming file and line (or the command line), the key, and what is accepted.
    """
    fields, owners = collect_fields(dataclass_types)
    parser = build_parser(dataclass_types, fields, description)
    return _instances(parser, dataclass_types, fields, owners, sys.argv[1:] if argv is None else argv)


def parse_command(
    commands: dict[str, tuple[type, str]], argv: Sequence[str] | None = None, description: str = ""
) -> tuple[str, Any]:
    """Like :func:`parse` with a sub-command first: ``plan.py model --model config.json``.

    Args:
        commands: name -> (dataclass of its settings, one line for ``--help``).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    program = Path(sys.argv[0]).name
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, commands))
        lines = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in commands.items())
        print(
            f"usage: {program} COMMAND [--config FILE] [--key=value ...]\n\n{description.strip()}\n\n{lines}"
        )
        print(f"\n{program} COMMAND --help lists the settings of one command.")
        raise SystemExit(0 if argv else 2)
    name = argv[0]
    if name not in commands:
        hint = suggestion(name, commands)
        raise SettingsError(
            f"command line: {name}: no such command{hint}; expected one of {', '.join(commands)}"
        )
    kind, line = commands[name]
    fields, owners = collect_fields((kind,))
    parser = build_parser((kind,), fields, line, program=f"{program} {name}")
    return name, _instances(parser, (kind,), fields, owners, argv[1:])[0]


def collect_fields(kinds: Sequence[type]) -> tuple[dict[str, Any], dict[str, type]]:
    """Field name -> annotation, and field name -> the dataclass it belongs to."""
    annotations: dict[str, Any] = {}
    owners: dict[str, type] = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if not field.init:
                continue
            if field.name in owners:
                both = f"{owners[field.name].__name__} and {kind.__name__}"
                raise TypeError(f"{both} both define `{field.name}`")
            annotations[field.name] = with_choices(hints[field.name], field.metadata.get("choices"))
            owners[field.name] = kind
    return annotations, owners


def _instances(
    parser: Parser,
    kinds: Sequence[type],
    annotations: dict[str, Any],
    owners: dict[str, type],
    argv: Sequence[str],
) -> tuple[Any, ...]:
    namespace, unknown = parser.parse_known_args(list(argv), argparse.Namespace())
    if unknown:
        name = unknown[0].split("=", 1)[0]
        if not name.startswith("--") and name.lstrip("-") in annotations:
            meant = "--" + unknown[0].lstrip("-")
            raise SettingsError(f"command line: {unknown[0]}: needs two dashes before it: {meant}")
        raise SettingsError(f"command line: {name}: unknown key{suggestion(name.lstrip('-'), annotations)}")
    given = vars(namespace)
    path = given.pop("config", None)
    if path == "":
        raise SettingsError("command line: config: expected a file, found ''")
    written = read_yaml(path) if path else {}
    written |= {name: _from_command_line(name, values, annotations[name]) for name, values in given.items()}
    arguments: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    for name, value in written.items():
        if name not in annotations:
            raise SettingsError(f"{value.where}: {name}: unknown key{suggestion(name, annotations)}")
        arguments[owners[name]][name] = _value(name, value, annotations[name])
    return tuple(_instance(kind, arguments[kind], path) for kind in kinds)


def _from_command_line(name: str, values: list[str], annotation: Any) -> Written:
    where = "command line"
    if not values and not takes_bool(annotation):
        raise SettingsError(f"{where}: {name}: expected {describe_type(annotation)}, found nothing")
    if not values:
        return WrittenScalar("true", where)  # a bare --flag
    if len(values) == 1:
        return WrittenScalar(values[0], where)
    return WrittenList(tuple(WrittenScalar(value, where) for value in values), where)


def _value(name: str, written: Written, annotation: Any) -> Any:
    try:
        return convert(_as_list_if_wanted(written, annotation), annotation)
    except MismatchError:
        accepted, found = describe_type(annotation), shown(written)
        near = nearest_name(written, annotation)
        raise SettingsError(f"{written.where}: {name}: expected {accepted}, found {found}{near}") from None


def _as_list_if_wanted(written: Written, annotation: Any) -> Written:
    """``--names one`` on the command line is a list of one; in YAML a list is written as a list."""
    single = isinstance(written, WrittenScalar) and not written.text.startswith("[")
    if single and written.where == "command line" and takes_only_lists(annotation):
        return WrittenList((written,), written.where)
    return written


def _instance(kind: type[T], arguments: dict[str, Any], path: str | None) -> T:
    source = path or "command line"
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        has_default = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if field.init and not has_default and field.name not in arguments:
            hint = typing.get_type_hints(kind)[field.name]
            elsewhere = "" if path else ", or --config FILE of a recipe"
            raise SettingsError(f"{source}: {field.name}: missing; expected {describe_type(hint)}{elsewhere}")
    try:
        return kind(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise SettingsError(f"{source}: {' '.join(str(error).split())}") from error
