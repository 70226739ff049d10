"""The list of files a corpus is made of, fixed before anything is tokenized.

JSON lines: a header, then one line a file.  Each line ends with a check that covers it and every line before, so a
line that was edited, moved, added or cut off is refused by its number.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ...files import write_atomically
from ...settings import FoundryError, sought

VERSION = 2  # 1 had no check over the root
COMPRESSIONS = ("none", "gzip", "zstd")
FORMATS = ("jsonl", "parquet", "text")
# A folder of shards is named so.
SPLIT = re.compile(r"[A-Za-z0-9_-]+")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SourceFile:
    """One file of a corpus.

    Args:
        path: relative to the manifest's root.
        num_bytes: as stored (compressed).
        estimated_rows: counted where the format tells, else scaled from a sample; None where nothing was read.
        sha256: None while nobody has read the whole file.
    """

    split: str
    path: str
    num_bytes: int
    format: str
    compression: str
    estimated_rows: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Manifest:
    """A corpus as a list of files.

    Args:
        root: folder or fsspec URL that the paths are relative to.
        files: in the order of their shards.
    """

    root: str
    files: tuple[SourceFile, ...]

    @property
    def fingerprint(self) -> str:
        """Changes when any line of the manifest does; the root may move."""
        return _lines(self.files)[1]

    def of_splits(self, splits: list[str] | None) -> list[SourceFile]:
        """Files of some splits; None is all of them.

        Raises:
            FoundryError: a split that is not there, or none.
        """
        if splits is not None and not splits:
            raise FoundryError("splits: expected at least one, or null for all, found none")
        known = sorted({file.split for file in self.files})
        for split in splits or []:
            if split not in known:
                raise FoundryError(f"splits: {split} is not in the manifest; it has {', '.join(known)}")
        return [file for file in self.files if splits is None or file.split in splits]

    def totals(self) -> dict[str, Counter[str]]:
        """For each split the number of files, bytes and (estimated) rows."""
        totals: dict[str, Counter[str]] = {}
        for file in self.files:
            totals.setdefault(file.split, Counter()).update(
                files=1, bytes=file.num_bytes, rows=file.estimated_rows or 0
            )
        return totals


def write_manifest(path: str | Path, manifest: Manifest) -> None:
    """Write atomically: the file is whole or not there.

    Raises:
        FoundryError: the file cannot be written.
    """
    lines, check = _lines(manifest.files)
    header: dict[str, Any] = {"manifest": VERSION, "root": manifest.root, "num_files": len(manifest.files)}
    header["check"] = _check(check, header)
    content = "\n".join([json.dumps(header, ensure_ascii=False), *lines]) + "\n"
    try:
        write_atomically(path, content)
    except OSError as error:
        raise FoundryError(
            f"{path}: cannot write the manifest ({error.strerror}); give another --output"
        ) from error


def read_manifest(path: str | Path) -> Manifest:
    """Read and check every line.

    Raises:
        FoundryError: naming the file and the first line that is not as it was written.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise FoundryError(f"{sought(path)}: cannot read the manifest ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise FoundryError(f"{path}: not a manifest: not UTF-8 at byte {error.start}") from error
    first, *lines = text.split("\n")
    header = _header(path, first)
    if not lines or lines[-1] != "":
        raise FoundryError(f"{path}: line {len(lines) + 1}: cut off; scan the folder again")
    lines.pop()
    files, check = [], ""
    for number, line in enumerate(lines, start=2):
        file, check = _read_line(path, number, line, check)
        files.append(file)
    if len(files) != header["num_files"]:
        raise FoundryError(
            f"{path}: line {len(files) + 2}: missing; the header says {header['num_files']} files, found {len(files)}"
        )
    if header.pop("check") != _check(check, header):
        raise FoundryError(f"{path}: line 1: not as it was written (it was changed); scan the folder again")
    return Manifest(header["root"], tuple(files))


def _header(path: str | Path, line: str) -> dict[str, Any]:
    try:
        header = json.loads(line)
        root, num_files, check = header["root"], header["num_files"], header["check"]
        if not (isinstance(root, str) and isinstance(num_files, int) and isinstance(check, str)):
            raise ValueError("a key of the wrong type")
    except (ValueError, KeyError, TypeError) as error:
        raise FoundryError(f"{path}: line 1: not the header of a manifest ({error})") from error
    if header.get("manifest") != VERSION:
        raise FoundryError(
            f"{path}: line 1: manifest version {header.get('manifest')} cannot be read here, expected {VERSION}"
        )
    return header


def _lines(files: tuple[SourceFile, ...]) -> tuple[list[str], str]:
    """The lines of the files and the check of the last one."""
    lines, check = [], ""
    for file in files:
        record = asdict(file)
        check = _check(check, record)
        lines.append(json.dumps({**record, "check": check}, ensure_ascii=False))
    return lines, check


def _check(previous: str, record: dict[str, Any]) -> str:
    content = previous + json.dumps(record, ensure_ascii=False, sort_keys=True)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _read_line(path: str | Path, number: int, line: str, previous: str) -> tuple[SourceFile, str]:
    try:
        record = json.loads(line)
        check = record.pop("check")
        if check != _check(previous, record):
            raise ValueError("it or a line before it was changed")
        file = SourceFile(**record)
        problem = next(_problems(file), None)
        if problem:
            raise ValueError(problem)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FoundryError(
            f"{path}: line {number}: not as it was written ({reason}); scan the folder again"
        ) from error
    return file, check


def _problems(file: SourceFile) -> Iterator[str]:
    for entry in fields(file):
        value = getattr(file, entry.name)
        kind = int if entry.name in ("num_bytes", "estimated_rows") else str
        optional = entry.name in ("estimated_rows", "sha256")
        if type(value) is not kind and not (optional and value is None):
            yield f"{entry.name}: {value!r}"
            return
    if not SPLIT.fullmatch(file.split):
        yield f"split: {file.split!r}"
    path = PurePosixPath(file.path)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        yield f"path: {file.path!r}, expected one inside the root"
    if file.num_bytes < 0 or (file.estimated_rows or 0) < 0:
        yield f"num_bytes {file.num_bytes}, estimated_rows {file.estimated_rows}"
    if file.sha256 is not None and not SHA256.fullmatch(file.sha256):
        yield f"sha256: {file.sha256!r}"
    if file.format not in FORMATS or file.compression not in COMPRESSIONS:
        yield f"format {file.format}, compression {file.compression}"
