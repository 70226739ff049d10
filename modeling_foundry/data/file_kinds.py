"""What a file of documents is, by the endings of its name: one list for all commands."""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath

FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet", ".txt": "text"}
COMPRESSIONS = {".zst": "zstd", ".zstd": "zstd", ".gz": "gzip"}


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
