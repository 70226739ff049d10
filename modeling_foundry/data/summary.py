"""What a data folder holds, in numbers: kept in ``data.json`` and printed as one small table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Row name -> its value for the train side and for the held-out side.
Rows = dict[str, tuple[float, float]]
PERCENTILES = (50, 95, 100)


def side_by_side(train: dict[str, float], held_out: dict[str, float]) -> Rows:
    """The same facts of both sides, one row each."""
    return {name: (train[name], held_out[name]) for name in train}


def length_percentiles(name: str, lengths: Iterable[int]) -> dict[str, float]:
    """Median, 95th percentile and maximum, as whole numbers that really occur."""
    values = np.percentile(list(lengths), PERCENTILES, method="higher")
    labels = ("median", "95% within", "longest")
    return {f"{name}, {label}": int(value) for label, value in zip(labels, values, strict=True)}


def repeated_line_share(train: Sequence[str], held_out: Sequence[str], min_characters: int = 30) -> float:
    """Share of the held-out lines of some length that also stand in the train text, indentation aside."""
    known = {line.strip() for text in train for line in text.splitlines()}
    lines = [line.strip() for text in held_out for line in text.splitlines()]
    lines = [line for line in lines if len(line) >= min_characters]
    return sum(line in known for line in lines) / max(1, len(lines))


def print_statistics(folder: Path, statistics: dict[str, Any]) -> None:
    """One small table of what was made."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(folder), title_justify="left", show_edge=False, pad_edge=False)
    for column in ("", "train", "held out"):
        table.add_column(column, justify="left" if not column else "right")
    for name, (train, held_out) in statistics["table"].items():
        table.add_row(name, _shown(train), _shown(held_out))
    console = Console(highlight=False, markup=False)
    console.print(table)
    for note in statistics["notes"]:
        console.print(note)


def _shown(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
