"""One written value converted once, by the type of the field it is for."""

from __future__ import annotations

import enum
import math
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from .written import (
    Written,
    WrittenList,
    WrittenMapping,
    WrittenScalar,
    number_in,
    read_in_one_line,
    yaml_value,
)

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
NULL_WORDS = ("null", "~", "none", "")


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


class MismatchError(Exception):
    """This annotation does not take this value; a union tries its next arm."""


def convert(written: Written, annotation: Any) -> Any:
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
    if not isinstance(written, WrittenScalar):
        raise MismatchError
    return _convert_scalar(written, annotation)


def _convert_union(written: Written, arms: tuple[Any, ...]) -> Any:
    is_null = isinstance(written, WrittenScalar) and not written.quoted and written.text.lower() in NULL_WORDS
    if is_null and type(None) in arms:
        return None
    # Text accepts anything, so it comes last; bool before int, or `true` would never reach it.
    order = {bool: 0, int: 1, float: 2, str: 9}
    for arm in sorted((arm for arm in arms if arm is not type(None)), key=lambda arm: order.get(arm, 5)):
        if arm is bool and isinstance(written, WrittenScalar) and written.text in ("0", "1"):
            continue
        try:
            return convert(written, arm)
        except MismatchError:
            continue
    raise MismatchError


def _choose(written: Written, choices: dict[str, Any]) -> Any:
    if isinstance(written, WrittenScalar) and written.text in choices:
        return choices[written.text]
    raise MismatchError


def _convert_list(written: Written, annotation: Any) -> Any:
    arms = [arm for arm in get_args(annotation) if arm is not Ellipsis]
    item_type = arms[0] if arms else str
    if isinstance(written, WrittenScalar) and not written.quoted and written.text.startswith("["):
        written = read_in_one_line(written)
    if not isinstance(written, WrittenList):
        raise MismatchError
    items = [convert(item, item_type) for item in written.items]
    return tuple(items) if get_origin(annotation) is tuple else items


def _convert_dict(written: Written) -> dict[str, Any]:
    if isinstance(written, WrittenScalar) and not written.quoted and written.text.startswith("{"):
        written = read_in_one_line(written)
    if not isinstance(written, WrittenMapping):
        raise MismatchError
    return written.value


def _convert_scalar(written: WrittenScalar, annotation: Any) -> Any:
    text = written.text
    if annotation is bool:
        if text.lower() in TRUE_WORDS:
            return True
        if text.lower() in FALSE_WORDS:
            return False
        raise MismatchError
    if annotation in (int, float):
        return _convert_number(text, annotation)
    if annotation in (str, Path):
        if not written.quoted and text.lower() in ("", "~", "null"):
            raise MismatchError
        return annotation(text)
    raise MismatchError


def _convert_number(text: str, annotation: type) -> int | float:
    try:
        value = annotation(text.replace("_", "") if annotation is int else text)
    except ValueError:
        as_float = number_in(text)
        if (
            annotation is int
            and isinstance(as_float, float)
            and as_float.is_integer()
            and "e" in text.lower()
        ):
            return int(as_float)  # 1e6 is a common way to write a whole number of tokens
        raise MismatchError from None
    if isinstance(value, float) and not math.isfinite(value):
        raise MismatchError
    return value


def _untyped(written: Written) -> Any:
    if isinstance(written, WrittenScalar):
        return written.text if written.quoted else yaml_value(written.text)
    return (
        written.value if isinstance(written, WrittenMapping) else [_untyped(item) for item in written.items]
    )


def takes_only_lists(annotation: Any) -> bool:
    return all(arm is type(None) or get_origin(arm) is list or arm is list for arm in arms_of(annotation))


def takes_bool(annotation: Any) -> bool:
    return bool in arms_of(annotation)


def arms_of(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
