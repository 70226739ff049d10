"""What a file of documents is: by the endings of its name, one list for all commands, and by its first bytes."""

from __future__ import annotations

import re
from pathlib import PurePath, PurePosixPath

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "text"}
COMPRESSIONS = {".zst": "zstd", ".zstd": "zstd", ".gz": "gzip"}

# First bytes that no JSON line and no UTF-8 text begins with -> what begins so.
BEGINNINGS = {
    b"\x1f\x8b": "gzip data", b"\x28\xb5\x2f\xfd": "zstd data", b"\xfd7zXZ\x00": "xz data",
    b"PK\x03\x04": "a zip archive",
    b"PAR1\x15": "a Parquet file", b"ARROW1\x00": "an Arrow file", b"SQLite format 3\x00": "an SQLite database",
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS (fetch the file itself with git lfs pull)",
    b"\xff\xfe\x00\x00": "UTF-32 text", b"\x00\x00\xfe\xff": "UTF-32 text", b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}  # fmt: skip
PATTERNS = {
    re.compile(rb"BZh[1-9]1AY&SY"): "bzip2 data",
    # Without a byte order mark: Latin letters with a zero byte, or three, on one side.
    re.compile(rb"[^\0]\0\0\0|\0\0\0[^\0]"): "UTF-32 text",
    re.compile(rb"(?:[^\0]\0){2}|(?:\0[^\0]){2}"): "UTF-16 text",
}


def kind_by_bytes(head: bytes) -> str | None:
    """What a file is that is neither JSON lines nor UTF-8 text, by its first bytes; None where they do not say."""
    known = (kind for beginning, kind in BEGINNINGS.items() if head.startswith(beginning))
    return next(known, None) or next(
        (kind for pattern, kind in PATTERNS.items() if pattern.match(head)), None
    )


def compression_of(name: str) -> str:
    """``gzip``, ``zstd`` or ``none``."""
    return COMPRESSIONS.get(PurePosixPath(name).suffix.lower(), "none")


def format_of(path: PurePath) -> str | None:
    """``jsonl``, ``parquet`` or ``text``; None for what holds no documents.

    A plain ``.json`` is a description, not rows; C4's rows are ``.json.gz``.  Parquet is compressed inside.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_packed = compression_of(path.name) != "none"
    if is_packed:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if (suffix == ".json" and not is_packed) or (suffix == ".parquet" and is_packed):
        return None
    return FORMATS.get(suffix)
