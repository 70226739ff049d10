"""Documents and metrics of the ``stdlib`` tasks, on the held-out modules of Python's standard library.

``recipes/prepare_data.py`` wrote the data folder: ``FOUNDRY_DATA_DIR``, or ``runs/quickstart/data``.
This file imports nothing of the package, so the tasks also run where only lm-eval and a checkpoint are.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

DEFAULT_DATA_DIR = "runs/quickstart/data"
END_OF_TURN = "<|im_end|>"
NUM_CHOICES = 4
# Wrong summaries come from this many whose length is nearest: a longer text has a lower probability whatever
# it says, and the shortest must not win by that.
NUM_NEIGHBOURS = 24


def data_dir() -> Path:
    """Folder of the prepared data."""
    return Path(os.environ.get("FOUNDRY_DATA_DIR", DEFAULT_DATA_DIR))


def read_lines(name: str) -> list[dict[str, Any]]:
    """The JSON lines of one file of the data folder.

    Raises:
        FileNotFoundError: saying which variable names the folder.
        ValueError: naming the line that is not JSON.
    """
    path = data_dir() / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; set FOUNDRY_DATA_DIR to a folder of prepare_data.py")
    lines = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not a JSON object ({error.msg})") from error
    return lines


def as_test_split(documents: list[dict[str, Any]]) -> DatasetDict:
    """What lm-eval expects of a ``custom_dataset``."""
    return DatasetDict({"test": Dataset.from_list(documents)})


def load_texts(**_: Any) -> DatasetDict:
    """Whole held-out modules: ``{"module", "text"}``."""
    return as_test_split(
        [{"module": line["module"], "text": line["text"]} for line in read_lines("heldout.jsonl")]
    )


def load_summaries(**_: Any) -> DatasetDict:
    """Held-out functions: ``{"module", "function", "prompt", "answer"}``."""
    return as_test_split([summary_document(line) for line in read_lines("sft_heldout.jsonl")])


def summary_document(line: dict[str, Any]) -> dict[str, str]:
    """Prompt and true summary of one line of ``sft_heldout.jsonl``."""
    *context, answer = line["messages"]
    if len(context) != 1 or context[0]["role"] != "user" or answer["role"] != "assistant":
        raise ValueError(f"{line.get('function')}: expected one user and one assistant message")
    return {
        "module": line["module"],
        "function": line["function"],
        "prompt": context[0]["content"],
        "answer": answer["content"],
    }


def load_choices(**_: Any) -> DatasetDict:
    """Held-out functions with four real summaries, one of them the function's own.

    The wrong ones and the order depend on the text of the function alone, not on limits or file order.
    """
    documents = [summary_document(line) for line in read_lines("sft_heldout.jsonl")]
    summaries = sorted({document["answer"] for document in documents}, key=lambda text: (len(text), text))
    if len(summaries) < NUM_CHOICES:
        raise ValueError(f"{data_dir() / 'sft_heldout.jsonl'}: needs {NUM_CHOICES} different summaries")
    return as_test_split([with_choices(document, summaries) for document in documents])


def with_choices(document: dict[str, str], summaries: list[str]) -> dict[str, Any]:
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
    documents = []
    for line in read_lines("dpo_heldout.jsonl"):
        answers = [line[name][0]["content"] for name in ("chosen", "rejected")]
        documents.append(
            {
                "module": line["module"],
                "function": line["function"],
                "prompt": line["prompt"][0]["content"],
                "choices": [answer + END_OF_TURN for answer in answers],
                "label": 0,
            }
        )
    return as_test_split(documents)


def score_choices(document: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """``acc``: the true answer has the highest log-probability; ``acc_norm``: the highest per UTF-8 byte.

    A tie is not a hit, so a model that cannot tell answers apart does not win by their order.
    """
    label = document["label"]
    sums = [loglikelihood for loglikelihood, _ in results]
    sizes = [len(text.removesuffix(END_OF_TURN).encode()) for text in document["choices"]]
    per_byte = [total / size for total, size in zip(sums, sizes, strict=True)]
    return {"acc": wins(sums, label), "acc_norm": wins(per_byte, label)}


def score_preference(document: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """:func:`score_choices`, and ``margin``: log-probability of the chosen answer above the rejected, in nats."""
    chosen, rejected = (loglikelihood for loglikelihood, _ in results)
    return {**score_choices(document, results), "margin": chosen - rejected}


def wins(scores: list[float], label: int) -> float:
    """1.0 where the score at ``label`` is above every other."""
    return float(all(scores[label] > score for place, score in enumerate(scores) if place != label))


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
