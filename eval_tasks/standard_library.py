"""Documents of the ``stdlib`` tasks, and the metric of what is generated (``choice_task.py`` has the others).

``recipes/prepare_data.py`` wrote the data folder: ``FOUNDRY_DATA_DIR``, or ``runs/quickstart/data``;
``FOUNDRY_HELDOUT_FILE`` names other documents for the bits per byte.
This file imports nothing of the package, so the tasks also run where only lm-eval and a checkpoint are.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

DEFAULT_DATA_DIR = "runs/quickstart/data"
CONTROL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TURN = "<|im_end|>"
NUM_CHOICES = 4
# Wrong summaries come from this many whose length is nearest: a longer text has a lower probability whatever
# it says, and the shortest must not win by that.
NUM_NEIGHBOURS = 24

# ------------------------------------------------------------------------------------------------ files


def data_dir() -> Path:
    """Folder of the prepared data."""
    return Path(os.environ.get("FOUNDRY_DATA_DIR", DEFAULT_DATA_DIR))


def heldout_file() -> Path:
    """Documents of the bits per byte: any JSON lines with ``text``."""
    return Path(os.environ.get("FOUNDRY_HELDOUT_FILE") or data_dir() / "heldout.jsonl")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each with its ``line`` and a ``module``, the line where none is named.

    Raises:
        FileNotFoundError: saying what names another.
        ValueError: naming the file, the line and what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; {_right(path)}")
    rows = [_row(path, number, line) for number, line in _numbered(path)]
    if not rows:
        raise ValueError(f"{path}: holds no rows; expected a JSON object a line")
    first_of: dict[str, int] = {}
    for row in rows:
        if "id" in row and first_of.setdefault(repr(row["id"]), row["line"]) != row["line"]:
            first = first_of[repr(row["id"])]
            raise ValueError(f"{path}:{row['line']}: id: {row['id']!r} stands in line {first} already")
    return rows


def _right(path: Path) -> str:
    if path.name == "heldout.jsonl":
        return (
            "the quickstart's prepare_data.py writes one, tokenize does not: name JSON lines with text, which no stage "
            "was trained on, by heldout_file (FOUNDRY_HELDOUT_FILE), or leave stdlib_bits_per_byte out of tasks"
        )
    return "set data_dir (FOUNDRY_DATA_DIR) to a folder of the quickstart's prepare_data.py"


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines that are not blank."""
    try:
        with open(path, encoding="utf-8") as file:
            yield from ((number, line) for number, line in enumerate(file, start=1) if line.strip())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{number}: not a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{path}:{number}: expected a JSON object, found {type(row).__name__}")
    module = row.get("module", f"line {number}")
    return {**row, "module": _text(module, "module", path, number), "line": number}


def _text(value: Any, key: str, path: Path, number: int) -> str:
    """A text that is not blank and has bytes.

    Raises:
        ValueError: naming file, line and key.
    """
    if not isinstance(value, str):
        raise ValueError(f"{path}:{number}: {key}: expected text, found {json.dumps(value)[:60]}")
    if not value.strip():
        raise ValueError(f"{path}:{number}: {key}: expected text, found none")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{path}:{number}: {key}: half of a surrogate pair is no text ({error.reason})"
        ) from error
    return value


def _value(row: dict[str, Any], key: str, path: Path) -> Any:
    if key not in row:
        known = ", ".join(name for name in row if name != "line")
        raise ValueError(f"{path}:{row['line']}: {key}: missing; found {known}")
    return row[key]


def _contents(row: dict[str, Any], key: str, roles: tuple[str, ...], path: Path) -> list[str]:
    """The contents of a list of messages with exactly these roles."""
    messages = _value(row, key, path)
    listed = isinstance(messages, list) and all(isinstance(message, dict) for message in messages)
    found = [message.get("role") for message in messages] if listed else []
    if found != list(roles):
        wanted = " and ".join(f"one {role} message" for role in roles)
        raise ValueError(f"{path}:{row['line']}: {key}: expected {wanted}")
    return [_text(message.get("content"), f"{key}: content", path, row["line"]) for message in messages]


# ------------------------------------------------------------------------------------------------ documents


def as_test_split(documents: list[dict[str, Any]]) -> DatasetDict:
    """What lm-eval expects of a ``custom_dataset``."""
    return DatasetDict({"test": Dataset.from_list(documents)})


def load_texts(**_: Any) -> DatasetDict:
    """Whole held-out documents: ``{"module", "text", "line"}``."""
    path = heldout_file()
    rows = read_lines(path)
    texts = [_text_or_empty(_value(row, "text", path), path, row["line"]) for row in rows]
    return as_test_split(
        [
            {"module": row["module"], "text": text, "line": row["line"]}
            for row, text in zip(rows, texts, strict=True)
        ]
    )


def _text_or_empty(value: Any, path: Path, number: int) -> str:
    """A document's text; modules may be empty, and such are never drawn."""
    return value if value == "" else _text(value, "text", path, number)


def load_summaries(**_: Any) -> DatasetDict:
    """Held-out functions: ``{"module", "function", "prompt", "answer", "line"}``."""
    return as_test_split(_summaries())


def _summaries() -> list[dict[str, Any]]:
    path = data_dir() / "sft_heldout.jsonl"
    return [summary_document(row, path) for row in read_lines(path)]


def summary_document(row: dict[str, Any], path: Path) -> dict[str, Any]:
    """Prompt and true summary of one line of ``sft_heldout.jsonl``."""
    prompt, answer = _contents(row, "messages", ("user", "assistant"), path)
    return {**_named(row), "prompt": prompt, "answer": plain(answer)}


def _named(row: dict[str, Any]) -> dict[str, Any]:
    return {"module": row["module"], "function": str(row.get("function", "")), "line": row["line"]}


def plain(answer: str) -> str:
    """An answer as the chat template of ``prepare_data.py`` writes it: control tokens it spells are not obeyed."""
    for token in CONTROL_TOKENS:
        answer = answer.replace(token, f"<| {token[2:-2]} |>")
    return answer


def load_choices(**_: Any) -> DatasetDict:
    """Held-out functions with four real summaries, one of them the function's own.

    The wrong ones and the order depend on the text of the function alone, not on limits or file order.
    """
    documents = _summaries()
    summaries = sorted({document["answer"] for document in documents}, key=lambda text: (len(text), text))
    if len(summaries) < NUM_CHOICES:
        raise ValueError(
            f"{data_dir() / 'sft_heldout.jsonl'}: needs {NUM_CHOICES} different summaries, found {len(summaries)}"
        )
    return as_test_split([with_choices(document, summaries) for document in documents])


def with_choices(document: dict[str, Any], summaries: list[str]) -> dict[str, Any]:
    """Add ``choices`` (texts) and ``label`` (index of the true one).

    Args:
        summaries: different held-out summaries, shortest first.
    """
    answer = document["answer"]
    place = summaries.index(answer)
    first = max(0, min(place - NUM_NEIGHBOURS // 2, len(summaries) - NUM_NEIGHBOURS - 1))
    neighbours = [text for text in summaries[first : first + NUM_NEIGHBOURS + 1] if text != answer]
    digest = hashlib.sha256(f"{document['prompt']}\0{answer}".encode()).digest()
    choices = random.Random(int.from_bytes(digest, "big")).sample(neighbours, NUM_CHOICES - 1)
    label = digest[0] % NUM_CHOICES
    choices.insert(label, answer)
    return {**document, "choices": choices, "label": label}


def load_preferences(**_: Any) -> DatasetDict:
    """Held-out preference pairs; both answers carry the end of the turn, which DPO's loss counts too."""
    path = data_dir() / "dpo_heldout.jsonl"
    return as_test_split([_preference(row, path) for row in read_lines(path)])


def _preference(row: dict[str, Any], path: Path) -> dict[str, Any]:
    (prompt,) = _contents(row, "prompt", ("user",), path)
    answers = [_contents(row, side, ("assistant",), path)[0] for side in ("chosen", "rejected")]
    return {
        **_named(row),
        "prompt": prompt,
        "choices": [plain(answer) + END_OF_TURN for answer in answers],
        "label": 0,
        "end_of_turn": END_OF_TURN,  # this ending of a choice is the control token, not text that spells it
    }


def score_summary(document: dict[str, Any], results: list[str]) -> dict[str, float]:
    """``token_f1`` of a generated summary against the true one."""
    return {"token_f1": token_f1(results[0], document["answer"])}


def token_f1(prediction: str, truth: str) -> float:
    """Harmonic mean of precision and recall over lower-case words (SQuAD, arXiv:1606.05250)."""
    predicted, true = (Counter(re.findall(r"\w+", text.lower())) for text in (prediction, truth))
    num_common = (predicted & true).total()
    if num_common == 0:
        return 0.0
    precision, recall = num_common / predicted.total(), num_common / true.total()
    return 2 * precision * recall / (precision + recall)
