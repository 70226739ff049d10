"""The rows of a file of conversations, one by one: what is no row is counted, and no value is made into another.

``datasets`` would read these files too, but it refuses a whole JSON file for one broken line, takes dates for
timestamps, and writes a list as its text where the rows before it had strings.  Nothing here needs the libraries
of the data stage, but for a packed file: training reads its rows here as well.
"""

from __future__ import annotations

import bz2
import json
import lzma
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ...files import object_of_unique_keys
from ...settings import FoundryError, sought
from ..sources.file_kinds import compression_of, kind_by_bytes
from .conversations import MalformedRowError, Reason, Row, kind_in_words

NumberedRow = tuple[int, Row | MalformedRowError]
PACKINGS = {"gzip": ".gz", "zstd": ".zst", "xz": ".xz", "bzip2": ".bz2"}
JSON_NAMES = (".json", ".jsonl", ".ndjson")
BLANK = b"\xef\xbb\xbf \t\r\n"
BATCH_ROWS = 1024
HEAD_BYTES = 64  # of what the first bytes say a file is


@dataclass(frozen=True)
class RowFile:
    """An opened file of rows.

    Args:
        unit: what the numbers count: ``line`` of JSON lines, ``row`` of a JSON list or of Parquet, from 1.
        is_typed: values come from typed columns (Parquet), where a missing key is a null.
    """

    path: Path
    unit: str
    rows: Iterable[NumberedRow]
    is_typed: bool = False

    def where(self, number: int) -> str:
        """What messages call a row."""
        return f"{self.path}, {self.unit} {number:,}"


def rows_of_file(path: Path) -> RowFile:
    """The rows of JSON lines, of one JSON list, or of Parquet; JSON may be packed.

    Raises:
        FoundryError: another kind of file, an empty one, or (while reading) one that cannot be read to its end.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise FoundryError(f"{sought(path)}: cannot read the rows ({error.strerror})") from error
    if not head:
        raise FoundryError(f"{path}: empty; expected rows")
    content, suffix = kind_by_bytes(head), _suffix_of(path)
    if content == "a Parquet file" or suffix == ".parquet":
        return RowFile(path, "row", _parquet(path), is_typed=True)
    packing = _packing_of(path, content)
    if packing is None and content is not None:
        raise FoundryError(
            f"{path}: this is {content}; expected JSON in UTF-8, which may be packed, or Parquet"
        )
    start = _start_of(path, packing)
    if suffix not in JSON_NAMES and start[:1] not in (b"{", b"["):
        raise FoundryError(f"{path}: expected a .json, .jsonl or .parquet file, also packed as .gz")
    if start == b"{\n":
        raise FoundryError(
            f"{path}: one JSON object over several lines; expected a row a line, or a list of rows"
        )
    if start[:1] == b"[":
        return RowFile(path, "row", _json_list(path, packing))
    return RowFile(path, "line", _json_lines(path, packing))


def _suffix_of(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in (*PACKINGS.values(), ".zstd"):
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _packing_of(path: Path, content: str | None) -> str | None:
    """By the name, which promises it, or else by the first bytes."""
    named = compression_of(path.name)
    if named != "none":
        return named
    by_ending = {ending: packing for packing, ending in PACKINGS.items()}
    by_bytes = (content or "").removesuffix(" data")
    return by_ending.get(path.suffix.lower(), by_bytes if by_bytes in PACKINGS else None)


def _start_of(path: Path, packing: str | None) -> bytes:
    """The first two characters from the first that is not white space; a line that ends between is ``\\n``."""
    with _unpacked(path, packing) as lines:
        return next((text[:1] + (text[1:2] or b"\n") for line in lines if (text := line.strip(BLANK))), b"")


def _json_list(path: Path, packing: str | None) -> Iterator[NumberedRow]:
    try:
        with _unpacked(path, packing) as lines:
            rows = _loads(b"\n".join(lines))
    except FoundryError:
        raise
    except (ValueError, RecursionError) as error:
        raise FoundryError(f"{path}: not JSON ({' '.join(str(error).split())[:200]})") from error
    for number, row in enumerate(rows, start=1):
        yield number, _checked(row)


def _json_lines(path: Path, packing: str | None) -> Iterator[NumberedRow]:
    with _unpacked(path, packing) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> Row | MalformedRowError:
    try:
        return _checked(_loads(line))
    except UnicodeDecodeError:
        return MalformedRowError(Reason.NOT_UTF8)
    except (ValueError, RecursionError) as error:
        return MalformedRowError(Reason.NOT_JSON, " ".join(str(error).split())[:100])


def _loads(text: bytes) -> Any:
    """JSON in UTF-8, in which no object has a key twice."""
    return json.loads(text.decode(), object_pairs_hook=object_of_unique_keys)


def _checked(row: Any) -> Row | MalformedRowError:
    return (
        row if isinstance(row, dict) else MalformedRowError(Reason.NOT_A_ROW, f"it is {kind_in_words(row)}")
    )


def _parquet(path: Path) -> Iterator[NumberedRow]:
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with open(path, "rb") as file:
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
def _unpacked(path: Path, packing: str | None) -> Iterator[Iterator[bytes]]:
    """The lines of a file, read to its very end; a packed one that breaks off is refused."""
    try:
        with open(path, "rb") as file:
            yield _without_mark(_lines(file, packing, path))
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise FoundryError(f"{path}: not readable to its end ({' '.join(str(error).split())})") from error


def _lines(file: IO[bytes], packing: str | None, path: Path) -> Iterator[bytes]:
    if packing is None:
        return (line.removesuffix(b"\n") for line in file)
    if packing in ("xz", "bzip2"):
        return iter(lzma.open(file) if packing == "xz" else bz2.open(file))
    try:
        from ..sources.lines import lines_of
    except ImportError as error:
        raise FoundryError(
            f"{path}: packed ({packing}); unpack it first, or pip install 'modeling-foundry[data]'"
        ) from error
    return lines_of(file, packing, str(path))


def _without_mark(lines: Iterator[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
