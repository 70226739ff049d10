"""Any plain-text file as a corpus: its end is held out."""

from __future__ import annotations

import io
from pathlib import Path

from ...settings import FoundryError, sought
from ..sources.file_kinds import kind_by_bytes
from .standard_library import Module

# Kinds of packed files that are read as they are.
PACKINGS = {"gzip data": "gzip", "zstd data": "zstd"}


def read_text_file(path: str | Path, held_out_fraction: float) -> tuple[list[Module], list[Module]]:
    """The file as one document to train on and one, its end, held out; cut at a line where there is one near.

    Packed by gzip or zstd it is read as it is.

    Raises:
        FoundryError: it cannot be read, is not UTF-8, or is too short to be cut.
    """
    path = Path(path)
    try:
        text = _text_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise FoundryError(f"{sought(path)}: cannot read the text file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise FoundryError(
            f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8 first"
        ) from error
    if not text.strip():
        raise FoundryError(f"{path}: empty; expected some lines of text")
    held_out_size = int(len(text) * held_out_fraction)
    cut = _place_to_cut(text, len(text) - held_out_size, reach=held_out_size // 2)
    train, held_out = text[:cut], text[cut:]
    if not train.strip() or not held_out.strip():
        raise FoundryError(f"{path}: too short to cut into text to train on and text to hold out")
    return [Module(path.stem, train)], [Module(path.stem, held_out)]


def _text_bytes(path: Path) -> bytes:
    """The bytes of the text, unpacked where the file's first bytes say that it is packed.

    Raises:
        FoundryError: it is of another kind, or its packing is damaged.
    """
    data = path.read_bytes()
    for _ in range(2):
        kind = kind_by_bytes(data)
        if kind is None:
            return data
        packing = PACKINGS.get(kind)
        if packing is None:
            break
        from ..sources.lines import blocks_of  # what it needs is not there on a machine that only trains

        data = b"".join(blocks_of(io.BytesIO(data), packing, str(path)))
    raise FoundryError(f"{path}: is {kind}, expected UTF-8 text; convert the file to UTF-8 first")


def _place_to_cut(text: str, place: int, reach: int) -> int:
    """Behind the line end, or else the space, within ``reach`` of ``place``; else ``place`` itself."""
    for separator in ("\n", " "):
        found = text.rfind(separator, max(0, place - reach), place)
        if found < 0:
            found = text.find(separator, place, place + reach)
        if found >= 0:
            return found + 1
    return place
