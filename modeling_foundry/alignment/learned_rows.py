"""Rows of SFT in which nothing is learned: left out before training, and counted.

Packing cuts samples into rows after the checks, and a row of questions alone would be a step with a loss of 0.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from transformers import Trainer

from ..model.losses import IGNORE_INDEX
from ..settings import FoundryError


def drop_unlearned_rows(trainer: Trainer, files: dict[str, str | None]) -> list[str]:
    """Leave rows without a learned token out of a trainer's data sets; every rank calls it.

    Args:
        files: where ``train_dataset`` and ``eval_dataset`` came from, by these names.

    Returns:
        A line for each file that had such rows.

    Raises:
        FoundryError: nothing is left of a file.
    """
    told = []
    for name, path in files.items():
        rows = getattr(trainer, name)
        if rows is None or "labels" not in rows.column_names:
            continue
        with trainer.args.main_process_first(desc="rows without a learned token"):
            kept = rows.filter(
                _is_learned, fn_kwargs={"is_flat": trainer.padding_free}, desc=f"Rows of {name}"
            )
        if len(kept) == 0:
            raise FoundryError(
                f"{path}: none of its {len(rows):,} rows of max_length {trainer.args.max_length} holds a token to "
                "learn; give a larger max_length"
            )
        if dropped := len(rows) - len(kept):
            told.append(
                f"{path}: {dropped:,} of {len(rows):,} rows of max_length {trainer.args.max_length} hold no token "
                "to learn and are left out"
            )
        setattr(trainer, name, kept)
    return told


def _is_learned(row: dict[str, Any], is_flat: bool) -> bool:
    """Whether any label counts; the first of a row, and where rows are laid flat of each document, predicts nothing.

    Args:
        row: ``labels``, and of packed rows ``seq_lengths``.
    """
    firsts = {0}
    if is_flat and "seq_lengths" in row:
        firsts |= set(accumulate(row["seq_lengths"]))
    return any(label != IGNORE_INDEX and place not in firsts for place, label in enumerate(row["labels"]))
