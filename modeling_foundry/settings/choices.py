"""Settings that take one name of several, however their library says so."""

from __future__ import annotations

import difflib
import enum
import types
from collections.abc import Iterable
from typing import Any, Literal, Union, get_args, get_origin

from .conversion import arms_of
from .written import Written, WrittenList, WrittenScalar


def with_choices(annotation: Any, choices: Iterable[Any] | None) -> Any:
    """``annotation`` with its text narrowed to the names that are known.

    transformers and TRL write them as ``str`` with ``choices`` beside it, or as ``SomeEnum | str``, and find a wrong
    name long after everything is loaded, or never.
    """
    arms = arms_of(annotation)
    named = tuple(arm for arm in arms if _is_enum(arm))
    if named:
        return _union(tuple(arm for arm in arms if arm is not str))
    if choices is not None and str in arms:
        return _union(tuple(Literal[tuple(choices)] if arm is str else arm for arm in arms))
    return annotation


def nearest_name(written: Written, annotation: Any) -> str:
    """``; did you mean ...?`` for a name that is nearly one of those accepted, else nothing."""
    items = written.items if isinstance(written, WrittenList) else (written,)
    names = list(_names(annotation))
    for item in items:
        if isinstance(item, WrittenScalar) and item.text not in names:
            close = difflib.get_close_matches(item.text, names, n=3, cutoff=0.5)
            return f"; did you mean {' or '.join(close)}?" if close else ""
    return ""


def _names(annotation: Any) -> Iterable[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    elif _is_enum(annotation):
        yield from (str(member.value) for member in annotation)
    elif get_origin(annotation) in (Union, types.UnionType, list, tuple):
        for arm in get_args(annotation):
            yield from _names(arm)


def _is_enum(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, enum.Enum)


def _union(arms: tuple[Any, ...]) -> Any:
    return Union[arms]  # noqa: UP007 - the arms are not known before
