"""Which held-out items are measured: the same for every model, drawn by the seed, kept with the results."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from ..files import read_lines
from ..settings import FoundryError
from .settings import EvaluationSettings

TEXTS, SUMMARIES, PREFERENCES = "heldout.jsonl", "sft_heldout.jsonl", "dpo_heldout.jsonl"
BITS_PER_BYTE = "stdlib_bits_per_byte"
# Task -> the file whose lines are its items, in the order of the file (eval_tasks/standard_library.py).
FILE_OF_TASK = {
    BITS_PER_BYTE: TEXTS,
    "stdlib_summary_choice": SUMMARIES,
    "stdlib_summary_preference": PREFERENCES,
    "stdlib_summary_generate": SUMMARIES,
}


def read_items(data_dir: str | Path, name: str) -> list[dict[str, Any]]:
    """The objects of one JSON-lines file of the data folder.

    Raises:
        FoundryError: the file is missing, or a line is not a JSON object.
    """
    path = Path(data_dir) / name
    try:
        lines = read_lines(path)
    except OSError as error:
        raise FoundryError(f"{path}: cannot read it ({error.strerror}); run `make data` first") from error
    items = []
    for number, line in enumerate(lines, start=1):
        try:
            item = json.loads(line)
        except ValueError:
            item = None
        if not isinstance(item, dict):
            raise FoundryError(f"{path}:{number}: not a JSON object; prepare the data again")
        items.append(item)
    return items


def select_items(settings: EvaluationSettings) -> dict[str, list[int]]:
    """Task -> indices of its items, ascending; a task without limit that is not ours has no entry."""
    chosen: dict[str, list[int]] = {}
    for task in settings.tasks:
        limit = settings.limits.get(task)
        if task == BITS_PER_BYTE:
            sizes = [len(item["text"].encode()) for item in read_items(settings.data_dir, TEXTS)]
            chosen[task] = draw_documents(sizes, settings.max_text_bytes, settings.seed, limit)
        elif task in FILE_OF_TASK:
            num_items = len(read_items(settings.data_dir, FILE_OF_TASK[task]))
            chosen[task] = sorted(draw(num_items, limit, settings.seed))
        elif limit is not None:
            chosen[task] = list(range(limit))
    return chosen


def draw(num_items: int, limit: int | None, seed: int) -> list[int]:
    """``limit`` of ``num_items`` indices in the seed's order; a larger limit only adds to a smaller one."""
    return random.Random(seed).sample(range(num_items), num_items)[:limit]


def draw_documents(sizes: list[int], max_bytes: int, seed: int, limit: int | None = None) -> list[int]:
    """Whole non-empty documents in the seed's order, as long as they fit into ``max_bytes`` together.

    Raises:
        FoundryError: not even two documents fit, and two is the least that has an error.
    """
    chosen: list[int] = []
    left = max_bytes
    for index in draw(len(sizes), None, seed):
        if 0 < sizes[index] <= left and len(chosen) < (limit or len(sizes)):
            chosen.append(index)
            left -= sizes[index]
    if len(chosen) < 2:
        raise FoundryError(
            f"max_text_bytes: {max_bytes} bytes hold fewer than two held-out documents; raise it"
        )
    return sorted(chosen)
