"""The one settings loader: strict flat YAML plus command-line overrides into dataclasses.

``recipes/x.py --config experiment.yaml --learning_rate=3e-4`` reads every value as the text it was
written as and converts it once, by the type of the dataclass field.  So ``007`` stays text for a text
field, ``no`` is not silently a boolean, and ``1e-3`` is a number.  An unknown key, a wrong type, a bad
choice, a duplicate key or a list for a scalar is one line on stderr and exit code 2.

Imports neither torch nor transformers: the planner answers in less time than they take to import.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin

import yaml

from .files import write_atomically
from .launcher import end_with_launcher

__all__ = [
    "FoundryError",
    "SettingsError",
    "parse",
    "parse_command",
    "read_yaml",
    "run",
    "setting",
    "write_atomically",
]

T = TypeVar("T")

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
NULL_WORDS = ("null", "~", "none", "")


class FoundryError(ValueError):
    """Bad input.  The message is one line that names the file, the key and what would be right.

    ``exit_code`` is what the recipe ends with; ``is_said`` is true where the line was printed already (by rank 0).
    """

    exit_code = 2
    is_said = False


class SettingsError(FoundryError):
    """A setting that cannot be used as written."""


@dataclasses.dataclass(frozen=True)
class _Scalar:
    """A value as written: its text, where it stands, and whether quotes made it literally text."""

    text: str
    where: str
    quoted: bool = False


@dataclasses.dataclass(frozen=True)
class _Sequence:
    items: tuple[Any, ...]
    where: str


@dataclasses.dataclass(frozen=True)
class _Mapping:
    value: dict[str, Any]
    where: str


_Written = _Scalar | _Sequence | _Mapping


# ------------------------------------------------------------------------------ reading what was written


def read_yaml(path: str | Path) -> dict[str, _Written]:
    """Read a flat YAML mapping without converting scalars.

    Raises:
        SettingsError: the file cannot be read, is not a mapping, or holds a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{path}: cannot read the configuration file ({reason})") from error
    root = _compose(text, str(path))
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(
            f"{path}: expected `key: value` lines, found a {type(root).__name__.removesuffix('Node').lower()}"
        )
    return {key: _written(node, where) for key, node, where in _pairs(root, str(path))}


def _compose(text: str, path: str) -> yaml.Node | None:
    """YAML without aliases and tags: what a setting is must stand where the setting stands."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                raise SettingsError(f"{path}:{line}: an alias is not accepted; write the value")
            if getattr(event, "tag", None):
                raise SettingsError(f"{path}:{line}: a tag is not accepted; write the value")
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise SettingsError(f"{path}{place}: not valid YAML ({problem})") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply for settings") from error


def _pairs(mapping: yaml.MappingNode, path: str) -> list[tuple[str, yaml.Node, str]]:
    first_line: dict[str, int] = {}
    pairs = []
    for key_node, value_node in mapping.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise SettingsError(f"{path}:{line}: a key must be plain text")
        key = key_node.value
        if key in first_line:
            raise SettingsError(
                f"{path}:{line}: {key}: given twice (first in line {first_line[key]}); keep one"
            )
        first_line[key] = line
        pairs.append((key, value_node, f"{path}:{line}"))
    return pairs


def _written(node: yaml.Node, where: str) -> _Written:
    if isinstance(node, yaml.ScalarNode):
        return _Scalar(node.value, where, quoted=node.style is not None)
    path = where.rsplit(":", 1)[0]
    if isinstance(node, yaml.SequenceNode):
        return _Sequence(tuple(_written(item, where) for item in node.value), where)
    assert isinstance(node, yaml.MappingNode)
    _pairs(node, path)  # refuses duplicate keys below the top level too
    return _Mapping(_plain(node, path), where)


def _plain(node: yaml.Node, path: str) -> Any:
    """A nested value with YAML's own types, for fields that take a dictionary."""
    if isinstance(node, yaml.MappingNode):
        return {key: _plain(value, path) for key, value, _ in _pairs(node, path)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    text = node.value
    if getattr(node, "style", None):
        return text
    number = _number(text)  # YAML 1.1 reads 1e-3 as text; a setting means the number
    value = _yaml_value(text) if number is None else number
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{path}:{node.start_mark.line + 1}: expected a finite number, found {text!r}")
    return value


def _yaml_value(text: str) -> Any:
    """A plain scalar as YAML reads it; as text where YAML cannot (``2020-13-45`` looks like a date)."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


# -------------------------------------------------------------------------------- one value, by its type


def describe_type(annotation: Any) -> str:
    """What a field accepts, in words for an error message or ``--help``."""
    if annotation is type(None):
        return "null"
    origin = get_origin(annotation)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe_type(arm) for arm in get_args(annotation)))
    if origin in (list, tuple, Sequence) or annotation in (list, tuple):
        items = [arm for arm in get_args(annotation) if arm is not Ellipsis]
        return f"a list ({describe_type(items[0])})" if items else "a list"
    if origin is dict or annotation is dict:
        return "a mapping"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


class _MismatchError(Exception):
    """This annotation does not take this value; a union tries its next arm."""


def _convert(written: _Written, annotation: Any) -> Any:
    origin = get_origin(annotation)
    if annotation is Any:
        return _untyped(written)
    if origin in (Union, types.UnionType):
        return _convert_union(written, get_args(annotation))
    if origin is Literal:
        return _choose(written, {str(choice): choice for choice in get_args(annotation)})
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return _choose(written, {str(member.value): member for member in annotation})
    if origin in (list, tuple, Sequence) or annotation in (list, tuple):
        return _convert_list(written, annotation)
    if origin is dict or annotation is dict:
        return _convert_dict(written)
    if not isinstance(written, _Scalar):
        raise _MismatchError
    return _convert_scalar(written, annotation)


def _convert_union(written: _Written, arms: tuple[Any, ...]) -> Any:
    is_null = isinstance(written, _Scalar) and not written.quoted and written.text.lower() in NULL_WORDS
    if is_null and type(None) in arms:
        return None
    # Text accepts anything, so it comes last; bool before int, or `true` would never reach it.
    order = {bool: 0, int: 1, float: 2, str: 9}
    for arm in sorted((arm for arm in arms if arm is not type(None)), key=lambda arm: order.get(arm, 5)):
        if arm is bool and isinstance(written, _Scalar) and written.text in ("0", "1"):
            continue
        try:
            return _convert(written, arm)
        except _MismatchError:
            continue
    raise _MismatchError


def _choose(written: _Written, choices: dict[str, Any]) -> Any:
    if isinstance(written, _Scalar) and written.text in choices:
        return choices[written.text]
    raise _MismatchError


def _convert_list(written: _Written, annotation: Any) -> Any:
    arms = [arm for arm in get_args(annotation) if arm is not Ellipsis]
    item_type = arms[0] if arms else str
    if isinstance(written, _Scalar) and not written.quoted and written.text.startswith("["):
        written = _read_in_one_line(written)
    if not isinstance(written, _Sequence):
        raise _MismatchError
    items = [_convert(item, item_type) for item in written.items]
    return tuple(items) if get_origin(annotation) is tuple else items


def _convert_dict(written: _Written) -> dict[str, Any]:
    if isinstance(written, _Scalar) and not written.quoted and written.text.startswith("{"):
        written = _read_in_one_line(written)
    if not isinstance(written, _Mapping):
        raise _MismatchError
    return written.value


def _read_in_one_line(written: _Scalar) -> _Written:
    """A list or mapping as it stands on a command line: ``[a, b]``, ``{a: 1}`` or the same in JSON."""
    node = _compose(written.text, written.where)
    assert node is not None  # the text begins with a bracket
    return _written(node, written.where)


def _convert_scalar(written: _Scalar, annotation: Any) -> Any:
    text = written.text
    if annotation is bool:
        if text.lower() in TRUE_WORDS:
            return True
        if text.lower() in FALSE_WORDS:
            return False
        raise _MismatchError
    if annotation in (int, float):
        return _convert_number(text, annotation)
    if annotation in (str, Path):
        if not written.quoted and text.lower() in ("", "~", "null"):
            raise _MismatchError
        return annotation(text)
    raise _MismatchError


def _convert_number(text: str, annotation: type) -> int | float:
    try:
        value = annotation(text.replace("_", "") if annotation is int else text)
    except ValueError:
        as_float = _number(text)
        if (
            annotation is int
            and isinstance(as_float, float)
            and as_float.is_integer()
            and "e" in text.lower()
        ):
            return int(as_float)  # 1e6 is a common way to write a whole number of tokens
        raise _MismatchError from None
    if isinstance(value, float) and not math.isfinite(value):
        raise _MismatchError
    return value


def _untyped(written: _Written) -> Any:
    if isinstance(written, _Scalar):
        return written.text if written.quoted else _yaml_value(written.text)
    return written.value if isinstance(written, _Mapping) else [_untyped(item) for item in written.items]


def _shown(written: _Written) -> str:
    if isinstance(written, _Scalar):
        return repr(written.text) if len(written.text) < 60 else repr(written.text[:57] + "...")
    return "a list" if isinstance(written, _Sequence) else "a mapping"


# ----------------------------------------------------------------------------------------- dataclasses


def setting(text: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its line of ``--help``; required without a default."""
    return dataclasses.field(default=default, metadata={"help": text})


def parse(
    *dataclass_types: type, argv: Sequence[str] | None = None, description: str = ""
) -> tuple[Any, ...]:
    """Build one instance of each dataclass from ``--config FILE`` and ``--key=value`` overrides.

    Raises:
        SettingsError: naming file and line (or the command line), the key, and what is accepted.
    """
    fields, owners = _collect_fields(dataclass_types)
    parser = _build_parser(dataclass_types, fields, description)
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
        hint = _suggestion(name, commands)
        raise SettingsError(
            f"command line: {name}: no such command{hint}; expected one of {', '.join(commands)}"
        )
    kind, line = commands[name]
    fields, owners = _collect_fields((kind,))
    parser = _build_parser((kind,), fields, line, program=f"{program} {name}")
    return name, _instances(parser, (kind,), fields, owners, argv[1:])[0]


def _collect_fields(kinds: Sequence[type]) -> tuple[dict[str, Any], dict[str, type]]:
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
            annotations[field.name], owners[field.name] = hints[field.name], kind
    return annotations, owners


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"command line: {message}")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of a docstring; shows ``--key VALUE``, and ``...`` only where a list is taken.

    argparse has no public hook for the second: every option is declared with ``nargs="*"``, so that a bare
    ``--flag`` and a list can be told apart by type later.
    """

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if isinstance(action, _Option) and action.nargs == "*":
            return f"{action.metavar} ..." if action.takes_list else str(action.metavar)
        return super()._format_args(action, default_metavar)


class _Option(argparse.Action):
    """Keeps an option as written and refuses a second use, which argparse would let win silently."""

    takes_list = False

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if hasattr(namespace, self.dest):
            raise SettingsError(f"command line: {self.dest}: given twice; keep one")
        setattr(namespace, self.dest, values)


def _build_parser(
    kinds: Sequence[type], annotations: dict[str, Any], description: str, program: str | None = None
) -> _Parser:
    program = program or Path(sys.argv[0]).name
    parser = _Parser(
        prog=program,
        usage=f"{program} [--config FILE] [--key=value ...]",
        description=description.strip().replace("%", "%%"),
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        add_help=True,
    )
    parser.add_argument(
        "--config", metavar="FILE", action=_Option, default=argparse.SUPPRESS, help="flat YAML file"
    )
    for kind in kinds:
        group = parser.add_argument_group(kind.__name__)
        for field in dataclasses.fields(kind):
            if field.init:
                option = group.add_argument(
                    f"--{field.name}",
                    nargs="*",
                    action=_Option,
                    default=argparse.SUPPRESS,
                    metavar=_metavar(field.name, annotations[field.name]),
                    help=_help_line(field, annotations[field.name]),
                )
                assert isinstance(option, _Option)
                option.takes_list = _takes_only_lists(annotations[field.name])
    return parser


def _metavar(name: str, annotation: Any) -> str:
    return "BOOL" if annotation is bool else name.rsplit("_", 1)[-1].upper()


def _help_line(field: dataclasses.Field[Any], annotation: Any) -> str:
    """What the setting is, what it takes, and its default as it would be written in YAML."""
    arms = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
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


def _instances(
    parser: _Parser,
    kinds: Sequence[type],
    annotations: dict[str, Any],
    owners: dict[str, type],
    argv: Sequence[str],
) -> tuple[Any, ...]:
    namespace, unknown = parser.parse_known_args(list(argv), argparse.Namespace())
    if unknown:
        name = unknown[0].split("=", 1)[0]
        raise SettingsError(f"command line: {name}: unknown key{_suggestion(name.lstrip('-'), annotations)}")
    given = vars(namespace)
    path = given.pop("config", None)
    written = read_yaml(path) if path else {}
    written |= {name: _from_command_line(values) for name, values in given.items()}
    arguments: dict[type, dict[str, Any]] = {kind: {} for kind in kinds}
    for name, value in written.items():
        if name not in annotations:
            raise SettingsError(f"{value.where}: {name}: unknown key{_suggestion(name, annotations)}")
        arguments[owners[name]][name] = _value(name, value, annotations[name])
    return tuple(_instance(kind, arguments[kind], path) for kind in kinds)


def _from_command_line(values: list[str]) -> _Written:
    where = "command line"
    if not values:
        return _Scalar("true", where)  # a bare --flag
    if len(values) == 1:
        return _Scalar(values[0], where)
    return _Sequence(tuple(_Scalar(value, where) for value in values), where)


def _value(name: str, written: _Written, annotation: Any) -> Any:
    try:
        return _convert(_as_list_if_wanted(written, annotation), annotation)
    except _MismatchError:
        accepted = describe_type(annotation)
        raise SettingsError(
            f"{written.where}: {name}: expected {accepted}, found {_shown(written)}"
        ) from None


def _as_list_if_wanted(written: _Written, annotation: Any) -> _Written:
    """``--names one`` on the command line is a list of one; in YAML a list is written as a list."""
    single = isinstance(written, _Scalar) and not written.text.startswith("[")
    if single and written.where == "command line" and _takes_only_lists(annotation):
        return _Sequence((written,), written.where)
    return written


def _takes_only_lists(annotation: Any) -> bool:
    arms = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return all(arm is type(None) or get_origin(arm) is list or arm is list for arm in arms)


def _suggestion(name: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; accepted: {', '.join(known)}" if len(known) <= 40 else "; --help lists the accepted keys"


def _instance(kind: type[T], arguments: dict[str, Any], path: str | None) -> T:
    source = path or "command line"
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        has_default = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if field.init and not has_default and field.name not in arguments:
            hint = typing.get_type_hints(kind)[field.name]
            raise SettingsError(f"{source}: {field.name}: missing; expected {describe_type(hint)}")
    try:
        return kind(**arguments)
    except (ValueError, TypeError, ImportError) as error:
        raise SettingsError(f"{source}: {' '.join(str(error).split())}") from error


# ------------------------------------------------------------------------------------------- programs


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a recipe: bad input is one line and exit code 2, an interrupt is exit code 130."""
    end_with_launcher()
    try:
        code = main() or 0
    except FoundryError as error:
        if not error.is_said:
            print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        code = 130
    sys.exit(code)
