"""Documents of one source file, with every row that gives none counted by its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

import orjson

from ...settings import FoundryError
from .file_bytes import ReadBytes, address_of, open_file
from .file_kinds import kind_by_bytes
from .lines import DamagedFileError, Readable, _as_text, blocks_of, lines_of
from .manifest import SourceFile
from .parquet_columns import check_column, open_parquet, texts_of

ROW_GROUP_ROWS = 1024

# Why a row gave no document.
BROKEN_JSON = "broken JSON"
NOT_UTF8 = "invalid UTF-8"
NO_TEXT = "no text"
EMPTY_TEXT = "empty text"
LONE_SURROGATE = "lone surrogate"


def read_documents(
    root: str, file: SourceFile, text_key: str, bad_rows: Counter[str], seen: ReadBytes | None = None
) -> Iterator[str]:
    """Texts of the documents of a file, in order.

    Args:
        root: folder or fsspec URL of the manifest.
        text_key: key or column that holds the text.
        bad_rows: counts, by reason, the rows that gave no document.
        seen: notes the bytes of the file, those behind a damage too.

    Raises:
        DamagedFileError: a truncated or corrupt compressed stream or Parquet file, or one of another kind.
        FoundryError: the file cannot be opened, has no such column, or one that holds no text.
    """
    name = address_of(root, file.path)
    try:
        with open_file(root, file.path) as stream:
            for text in _noted(stream, file, text_key, bad_rows, name, seen or ReadBytes()):
                if not text:
                    bad_rows[EMPTY_TEXT] += 1
                elif _has_lone_surrogate(text):
                    bad_rows[LONE_SURROGATE] += 1
                else:
                    yield text
    except OSError as error:
        raise FoundryError(f"{name}: cannot be read ({error.strerror or error})") from error


def _noted(
    stream: IO[bytes], file: SourceFile, text_key: str, bad_rows: Counter[str], name: str, seen: ReadBytes
) -> Iterator[str]:
    """Texts, empty ones too; ``seen`` has noted every byte once when they end or break off."""
    reader = {"jsonl": _json_lines, "parquet": _parquet, "text": _whole_text}[file.format]
    is_parquet = file.format == "parquet"  # read here and there: hashed from its start when that is done
    damage = None
    try:
        yield from reader(stream if is_parquet else seen.of(stream), file, text_key, bad_rows, name)
    except DamagedFileError as error:
        damage = error
    if is_parquet:
        stream.seek(0)
    seen.of(stream).read_rest()
    if damage is not None:
        raise damage


def count_rows(root: str, file: SourceFile) -> int:
    """Rows of a file: from Parquet's own footer, else by reading it; what is damaged is counted up to there."""
    name = address_of(root, file.path)
    if file.format == "text":
        return 1
    rows = 0
    with open_file(root, file.path) as stream:
        try:
            if file.format == "parquet":
                import pyarrow.parquet

                return int(pyarrow.parquet.ParquetFile(stream).metadata.num_rows)
            for block in blocks_of(stream, file.compression, name):
                rows += block.count(b"\n")
        except (FoundryError, ValueError, OSError):
            return rows  # an estimate; tokenize reports the damage
    return rows


def _json_lines(
    stream: Readable, file: SourceFile, text_key: str, bad_rows: Counter[str], name: str
) -> Iterator[str]:
    for line in lines_of(stream, file.compression, name):
        if not line.strip():
            continue
        row = _parse(line)
        if isinstance(row, str):
            bad_rows[row] += 1
        elif not isinstance(row, dict) or not isinstance(row.get(text_key), str):
            bad_rows[NO_TEXT] += 1
        else:
            yield row[text_key]


def _parse(line: bytes) -> Any:
    """The row, or as a str the reason why there is none."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            row = json.loads(line.decode("utf-8"))  # takes what orjson does not: lone surrogates, big numbers
        except UnicodeDecodeError:
            return NOT_UTF8
        except (ValueError, RecursionError):
            return BROKEN_JSON
    return [] if isinstance(row, str) else row  # a JSON string is a row without a key, not a reason


def _parquet(
    stream: Any, file: SourceFile, text_key: str, bad_rows: Counter[str], name: str
) -> Iterator[str]:
    import pyarrow

    if (kind := kind_by_bytes(stream.read(64))) not in ("a Parquet file", None):
        raise DamagedFileError(f"{name}: not a whole Parquet file (it is {kind})")
    stream.seek(0)
    try:
        table = open_parquet(stream)
        check_column(table.schema_arrow, text_key, name)
        for batch in table.iter_batches(batch_size=ROW_GROUP_ROWS, columns=[text_key]):
            for text in texts_of(batch.column(text_key)):
                if isinstance(text, str):
                    yield text
                else:
                    bad_rows[NOT_UTF8 if isinstance(text, bytes) else NO_TEXT] += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedFileError(
            f"{name}: not a whole Parquet file ({' '.join(str(error).split())})"
        ) from error


def _whole_text(
    stream: Readable, file: SourceFile, text_key: str, bad_rows: Counter[str], name: str
) -> Iterator[str]:
    """A text file is one document.

    Raises:
        DamagedFileError: it is something else.
    """
    data = b"".join(_as_text(blocks_of(stream, file.compression, name), name))
    try:
        yield data.decode("utf-8-sig")
    except UnicodeDecodeError:
        bad_rows[NOT_UTF8] += 1


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
