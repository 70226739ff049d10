"""Any plain-text file as a corpus: its end is held out."""

from __future__ import annotations

from pathlib import Path

from ..settings import FoundryError
from .corpus import Module
from .file_kinds import kind_by_bytes


def read_text_file(path: str | Path, held_out_fraction: float) -> tuple[list[Module], list[Module]]:
    """The file as one document to train on and one, its end, held out; cut at a line where there is one near.

    Raises:
        FoundryError: it cannot be read, is not UTF-8, or is too short to be cut.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FoundryError(f"{path}: cannot read the text file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        kind = kind_by_bytes(path.read_bytes()[:64])
        what = f"this is {kind}" if kind else f"byte {error.start} is not UTF-8"
        raise FoundryError(f"{path}: {what}; expected text in UTF-8, not packed") from error
    if not text.strip():
        raise FoundryError(f"{path}: empty; expected some lines of text")
    held_out_size = int(len(text) * held_out_fraction)
    cut = _place_to_cut(text, len(text) - held_out_size, reach=held_out_size // 2)
    train, held_out = text[:cut], text[cut:]
    if not train.strip() or not held_out.strip():
        raise FoundryError(f"{path}: too short to cut into text to train on and text to hold out")
    return [Module(path.stem, train)], [Module(path.stem, held_out)]


def _place_to_cut(text: str, place: int, reach: int) -> int:
    """Behind the line end, or else the space, within ``reach`` of ``place``; else ``place`` itself."""
    for separator in ("\n", " "):
        found = text.rfind(separator, max(0, place - reach), place)
        if found < 0:
            found = text.find(separator, place, place + reach)
        if found >= 0:
            return found + 1
    return place
