"""The items of evaluation tasks as text, from JSONL files and from lm-eval tasks, for decontamination."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...settings import FoundryError
from ..sources.file_bytes import open_address
from ..sources.file_kinds import compression_of
from ..sources.input_files import kind_of
from ..sources.lines import DamagedFileError, lines_of
from .decontamination import EvaluationItem


def read_items(sources: Sequence[str], text_keys: Sequence[str], task_dir: str) -> list[EvaluationItem]:
    """The items of every source, in order.

    Args:
        sources: JSONL files, and names of lm-eval tasks or groups defined in ``task_dir``.
        text_keys: of a file's rows; those that are there make the text, in this order.

    Raises:
        FoundryError: a file, a row or a task cannot be read, or a source holds no item.
    """
    files = [source for source in sources if kind_of(Path(source)) == "jsonl"]
    names = [source for source in sources if source not in files]
    known = Counter(Path(path).name for path in files)
    items = [
        item
        for path in files
        for item in items_of_file(path, text_keys, path if known[Path(path).name] > 1 else Path(path).name)
    ]
    if names:
        items += items_of_tasks(names, task_dir)
    return items


# ------------------------------------------------------------------------------------------------ files


def items_of_file(path: str, text_keys: Sequence[str], task: str) -> list[EvaluationItem]:
    """One item a line, known as one of ``task``: the file's name, or its path where two have one name.

    Raises:
        FoundryError: naming the file, the line and what is wrong with it.
    """
    items = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FoundryError(f"{path}:{number}: not a JSON object ({error})") from error
        if not isinstance(row, dict):
            raise FoundryError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
        texts = [text for key in text_keys if key in row for text in _texts(row[key])]
        if not texts:
            raise FoundryError(
                f"{path}:{number}: eval_text_keys: expected text under one of {', '.join(text_keys)}; "
                f"found {', '.join(map(str, row)) or 'nothing'}"
            )
        items.append(EvaluationItem(task, str(row.get("id", number)), "\n".join(texts)))
    if not items:
        raise FoundryError(f"{path}: decontaminate: holds no evaluation item")
    return items


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open_address(path) as stream:
            yield from lines_of(stream, compression_of(path), path)
    except (OSError, DamagedFileError) as error:
        raise FoundryError(f"{path}: decontaminate: cannot read the evaluation file ({error})") from error


def _texts(value: Any) -> list[str]:
    """Text, or a list of it (choices); anything else is no text."""
    if isinstance(value, list):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) and value.strip() else []


# ------------------------------------------------------------------------------------------------ lm-eval


def items_of_tasks(names: Sequence[str], task_dir: str) -> list[EvaluationItem]:
    """The evaluation documents of lm-eval tasks: prompt and true answer of each, without few-shot examples.

    Raises:
        FoundryError: lm-eval is not installed, does not find a task, or cannot load it.
    """
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise FoundryError(
            f"decontaminate: {names[0]}: lm-eval is not installed; pip install 'modeling-foundry[eval]'"
        ) from error
    if not Path(task_dir).is_dir():
        raise FoundryError(f"{task_dir}: task_dir: expected a folder of lm-eval task files")
    manager = TaskManager(include_path=task_dir, include_defaults=False)
    for name in names:
        if name not in manager.all_tasks:
            known = ", ".join(manager.all_tasks)
            raise FoundryError(
                f"decontaminate: {name}: neither a file ending in .jsonl (also .gz or .zst) "
                f"nor a task of {task_dir} ({known})"
            )
    items: dict[tuple[str, str], EvaluationItem] = {}
    for name in names:
        try:
            for task_name, task in manager.load(name)["tasks"].items():
                for place, document in enumerate(task.eval_docs):
                    items[task_name, str(place)] = EvaluationItem(
                        task_name, str(place), text_of(task, document)
                    )
        except Exception as error:  # a task is a program of its own: it may fail with anything
            reason = " ".join(str(error).split())[:300]
            raise FoundryError(
                f"decontaminate: {name}: lm-eval cannot load it ({type(error).__name__}: {reason})"
            ) from error
    return list(items.values())


def text_of(task: Any, document: dict[str, Any]) -> str:
    """Prompt and true answer of one document of an lm-eval task; an index stands for the choice it names."""
    choices = task.doc_to_choice(document) if task.config.doc_to_choice is not None else None
    parts = []
    for value in (task.doc_to_text(document), task.doc_to_target(document)):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, int) and choices is not None:
                part = choices[part]
            parts.append(str(part))
    return "\n".join(part for part in parts if part.strip())
