"""The rows of a local chat dataset, one by one: what is no row is counted, and no value is made into another.

``datasets`` would read these files too, but it refuses a whole JSON file for one broken line, takes dates for
timestamps, and writes a list as its text where the rows before it had strings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any

import fsspec

from ..settings import FoundryError
from .chat_rows import MalformedRowError, Reason, Row
from .documents import DamagedFileError, lines_of
from .file_kinds import compression_of

NumberedRow = tuple[int, Row | MalformedRowError]
PACKED = (".gz", ".zst", ".xz", ".bz2")
BATCH_ROWS = 1024


def rows_of_file(path: Path) -> Iterator[NumberedRow]:
    """Each row with its number: the line of JSON lines, else counted from 1.

    Raises:
        FoundryError: another kind of file, an empty one, or one that cannot be read to its end.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
    readers: dict[str, Callable[[Path], Iterator[NumberedRow]]] = {
        ".jsonl": _json_lines, ".json": _json, ".parquet": _parquet,
    }  # fmt: skip
    reader = readers.get(suffixes[-1] if suffixes else "")
    if reader is None:
        raise FoundryError(f"{path}: expected a .json, .jsonl or .parquet file, also packed as .gz")
    if path.stat().st_size == 0:
        raise FoundryError(f"{path}: empty; expected rows")
    return reader(path)


def _json(path: Path) -> Iterator[NumberedRow]:
    """One list of rows, or JSON lines under another name."""
    with _unpacked(path) as lines:
        first = next((line for line in lines if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    return _json_list(path) if first.lstrip(b"\xef\xbb\xbf \t\r").startswith(b"[") else _json_lines(path)


def _json_list(path: Path) -> Iterator[NumberedRow]:
    try:
        with _unpacked(path) as lines:
            rows = json.loads(b"\n".join(lines))
    except (ValueError, RecursionError) as error:
        raise FoundryError(f"{path}: not JSON ({' '.join(str(error).split())})") from error
    for number, row in enumerate(rows, start=1):
        yield number, _checked(row)


def _json_lines(path: Path) -> Iterator[NumberedRow]:
    with _unpacked(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> Row | MalformedRowError:
    try:
        return _checked(json.loads(line))
    except UnicodeDecodeError:
        return MalformedRowError(Reason.NOT_UTF8)
    except (ValueError, RecursionError) as error:
        return MalformedRowError(Reason.NOT_JSON, " ".join(str(error).split())[:100])


def _checked(row: Any) -> Row | MalformedRowError:
    return (
        row if isinstance(row, dict) else MalformedRowError(Reason.NOT_A_ROW, f"it is {type(row).__name__}")
    )


def _parquet(path: Path) -> Iterator[NumberedRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with fsspec.open(path, "rb", compression="infer") as file:
            for batch in ParquetFile(file).iter_batches(BATCH_ROWS):
                for row in _rows_of(batch):
                    number += 1
                    yield number, row
    except (ArrowException, OSError, EOFError) as error:
        raise FoundryError(
            f"{path}: not readable as parquet ({' '.join(str(error).split())[:200]})"
        ) from error


def _rows_of(batch: Any) -> Iterable[Row | MalformedRowError]:
    """The rows of a batch; pyarrow gives none of them where one is not UTF-8, so those are then taken singly."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return [_single(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _single(batch: Any) -> Row | MalformedRowError:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError:
        return MalformedRowError(Reason.NOT_UTF8)


@contextmanager
def _unpacked(path: Path) -> Iterator[Iterator[bytes]]:
    """The lines of a file; gzip and zstd are read to their very end, which fsspec's readers do not check."""
    kind = compression_of(path.name)
    try:
        with fsspec.open(path, "rb", compression="infer" if kind == "none" else None) as file:
            yield _without_mark(file, kind, str(path))
    except (OSError, EOFError, LZMAError, DamagedFileError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise FoundryError(f"{path}: not readable to its end ({reason})") from error


def _without_mark(file: IO[bytes], kind: str, name: str) -> Iterator[bytes]:
    for number, line in enumerate(lines_of(file, kind, name)):
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
