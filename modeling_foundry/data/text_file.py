"""Any plain-text file as a corpus: its end is held out."""

from __future__ import annotations

from pathlib import Path

from ..settings import FoundryError
from .corpus import Module


def read_text_file(path: str | Path, held_out_fraction: float) -> tuple[list[Module], list[Module]]:
    """The file as one document to train on and one, its end, held out; cut at a line.

    Raises:
        FoundryError: it cannot be read, is not UTF-8, or is too short to be cut.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FoundryError(f"{path}: cannot read the text file ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise FoundryError(
            f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8 first"
        ) from error
    if not text.strip():
        raise FoundryError(f"{path}: empty; expected some lines of text")
    cut = _line_start_near(text, int(len(text) * (1 - held_out_fraction)))
    train, held_out = text[:cut], text[cut:]
    if not train.strip() or not held_out.strip():
        raise FoundryError(f"{path}: too short to cut at a line into text to train on and text to hold out")
    return [Module(path.stem, train)], [Module(path.stem, held_out)]


def _line_start_near(text: str, place: int) -> int:
    """Start of the line that ``place`` is in; of the next one where that is the first."""
    before = text.rfind("\n", 0, place) + 1
    return before or text.find("\n", place) + 1
