"""YAML as it was written: text with its place, not yet converted to any type."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import yaml

from .errors import SettingsError, sought


@dataclasses.dataclass(frozen=True)
class WrittenScalar:
    """A value as written: its text, where it stands, and whether quotes made it literally text."""

    text: str
    where: str
    quoted: bool = False


@dataclasses.dataclass(frozen=True)
class WrittenList:
    items: tuple[Any, ...]
    where: str


@dataclasses.dataclass(frozen=True)
class WrittenMapping:
    value: dict[str, Any]
    where: str


Written = WrittenScalar | WrittenList | WrittenMapping


def read_yaml(path: str | Path) -> dict[str, Written]:
    """Read a flat YAML mapping without converting scalars.

    Raises:
        SettingsError: the file cannot be read, is not a mapping, or holds a key twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{sought(path)}: cannot read the configuration file ({reason})") from error
    root = compose(text, str(path))
    if root is None:
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise SettingsError(
            f"{path}: expected `key: value` lines, found a {type(root).__name__.removesuffix('Node').lower()}"
        )
    return {key: as_written(node, where) for key, node, where in _pairs(root, str(path))}


def compose(text: str, path: str) -> yaml.Node | None:
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


def as_written(node: yaml.Node, where: str) -> Written:
    if isinstance(node, yaml.ScalarNode):
        return WrittenScalar(node.value, where, quoted=node.style is not None)
    path = where.rsplit(":", 1)[0]
    if isinstance(node, yaml.SequenceNode):
        return WrittenList(tuple(as_written(item, where) for item in node.value), where)
    assert isinstance(node, yaml.MappingNode)
    _pairs(node, path)  # refuses duplicate keys below the top level too
    return WrittenMapping(_plain(node, path), where)


def _plain(node: yaml.Node, path: str) -> Any:
    """A nested value with YAML's own types, for fields that take a dictionary."""
    if isinstance(node, yaml.MappingNode):
        return {key: _plain(value, path) for key, value, _ in _pairs(node, path)}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, path) for item in node.value]
    text = node.value
    if getattr(node, "style", None):
        return text
    number = number_in(text)  # YAML 1.1 reads 1e-3 as text; a setting means the number
    value = yaml_value(text) if number is None else number
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{path}:{node.start_mark.line + 1}: expected a finite number, found {text!r}")
    return value


def yaml_value(text: str) -> Any:
    """A plain scalar as YAML reads it; as text where YAML cannot (``2020-13-45`` looks like a date)."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def number_in(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def read_in_one_line(written: WrittenScalar) -> Written:
    """A list or mapping as it stands on a command line: ``[a, b]``, ``{a: 1}`` or the same in JSON."""
    node = compose(written.text, written.where)
    assert node is not None  # the text begins with a bracket
    return as_written(node, written.where)


def shown(written: Written) -> str:
    if isinstance(written, WrittenScalar):
        return repr(written.text) if len(written.text) < 60 else repr(written.text[:57] + "...")
    return "a list" if isinstance(written, WrittenList) else "a mapping"
