"""Which held-out items are measured: the same for every model, drawn by the seed, kept with the results."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...settings import FoundryError
from ..settings import EvaluationSettings

BITS_PER_BYTE = "stdlib_bits_per_byte"
# Task -> the file whose lines are its items (eval_tasks/standard_library.py).
FILE_OF_TASK = {
    BITS_PER_BYTE: "heldout.jsonl",
    "stdlib_summary_choice": "sft_heldout.jsonl",
    "stdlib_summary_preference": "dpo_heldout.jsonl",
    "stdlib_summary_generate": "sft_heldout.jsonl",
}


def file_of(task: str, settings: EvaluationSettings) -> Path | None:
    """The file whose lines are a task's items; None for tasks that are not ours."""
    if task == BITS_PER_BYTE and settings.heldout_file:
        return Path(settings.heldout_file)
    return Path(settings.data_dir) / FILE_OF_TASK[task] if task in FILE_OF_TASK else None


def select_items(
    limits: Mapping[str, int], settings: EvaluationSettings, tasks: Mapping[str, Any]
) -> dict[str, list[int]]:
    """Task -> numbers of its items, ascending.

    Args:
        limits: items at most, by task.
        tasks: lm-eval's, groups taken apart.

    Raises:
        FoundryError: too few documents fit into ``max_text_bytes``.
    """
    chosen: dict[str, list[int]] = {}
    for name, task in tasks.items():
        documents, limit = task.eval_docs, limits.get(name)
        if name == BITS_PER_BYTE:
            sizes = [len(text.encode()) for text in documents["text"]]
            chosen[name] = draw_documents(sizes, settings.max_text_bytes, settings.seed, limit)
        elif name in FILE_OF_TASK:
            chosen[name] = sorted(draw(len(documents), limit, settings.seed))
        else:
            chosen[name] = list(range(min(len(documents), limit or len(documents))))
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
            f"max_text_bytes: {max_bytes} bytes hold {len(chosen)} of {len(sizes)} held-out documents, and two are "
            "the least that has an error; raise it, or give more and shorter documents"
        )
    return sorted(chosen)
