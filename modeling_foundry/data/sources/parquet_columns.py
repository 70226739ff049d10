"""A column of text in a Parquet file, of whatever type, row by row."""

from __future__ import annotations

from typing import Any

from ...settings import FoundryError


def open_parquet(stream: Any) -> Any:
    """A Parquet file whose texts are not checked as they are read.

    Told nothing, pyarrow makes the writer's dictionaries again (pandas' categories), and to number them as the
    writer did it casts their words: one that is not UTF-8 then costs the file.
    """
    import pyarrow
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(stream, binary_type=pyarrow.large_binary())


def check_column(schema: Any, text_key: str, name: str) -> None:
    """Raise FoundryError where a file has no such column, two, or one of another type than text.

    A column of nothing but nulls has the type null: its rows are counted, for the other files' may hold text.
    """
    number = schema.names.count(text_key)
    if number != 1:
        said = "no column" if not number else f"{number} columns named"
        raise FoundryError(f"{name}: {said} {text_key}; it has {', '.join(schema.names)}; give --text_key")
    if not _is_text(schema.field(text_key).type):
        raise FoundryError(
            f"{name}: column {text_key} is {schema.field(text_key).type}, expected text; it has "
            f"{', '.join(schema.names)}; give --text_key"
        )


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = getattr(kind, "storage_type", kind)  # under an extension
    if types.is_dictionary(kind):
        kind = kind.value_type
    names = "string large_string string_view binary large_binary binary_view fixed_size_binary null"
    return any(getattr(types, f"is_{name}")(kind) for name in names.split())


def texts_of(column: Any) -> list[str | bytes | None]:
    """Rows of a pyarrow column of text or bytes: text, the bytes of what is not UTF-8, None where there is nothing.

    Taken as bytes first: pyarrow gives no row of a batch in which one is not UTF-8.
    """
    import pyarrow

    column = getattr(column, "storage", column)
    if isinstance(column, pyarrow.DictionaryArray):
        column = column.dictionary_decode()
    return [_decoded(value) for value in column.cast(pyarrow.large_binary()).to_pylist()]


def _decoded(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value
