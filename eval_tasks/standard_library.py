"""Documents, requests and metrics of the ``stdlib`` tasks.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

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


# ------------------------------------------------------------------------------------------------ requests


class ChoiceTask(ConfigurableTask):
    """Log-probabilities of the answers alone, and of their bytes alone.

    A prompt ends with what the chat template writes before an answer, mostly ``assistant`` and a newline.  lm-eval
    moves blanks from the end of a prompt into every answer, where they cost 5 to 9 nats which no answer decides.
    So the prompt is cut where its tokens allow it, what lies between is asked for once, and taken off; where the
    tokens of an answer begin before it does (``Assistant: `` and ``Yes`` are ``: Yes``), what lies between is scored
    with every answer, and its bytes count too.  An answer that ends its turn is asked for without the end as well:
    the control token has no bytes.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        own = {"process_results": score_choices}  # lm-eval must not look for our metrics among its own
        super().__init__(config={key: value for key, value in (config or {}).items() if key != "class"} | own)
        self._between: dict[int, tuple[str, bool]] = {}

    def construct_requests(self, doc: dict[str, Any], ctx: str, **kwargs: Any) -> list[Instance]:
        """Every choice; each without the end of its turn where it has one; what stands between prompt and answer."""
        apply, chat_template = kwargs.pop("apply_chat_template", False), kwargs.pop("chat_template", None)
        encode = getattr(
            getattr(chat_template, "__self__", None), "tok_encode", None
        )  # the model being measured
        prompt = ctx if apply else ctx + self.config.target_delimiter
        head, between, apart = cut_prompt(prompt, doc["choices"], encode)
        self._between[doc["line"]] = (between, apart)
        texts = [*doc["choices"], *(bare for bare in bare_choices(doc) if doc.get("end_of_turn"))]
        parts = [between + text for text in texts] + [between] * bool(between and apart)
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=(head, part), idx=index, **kwargs)
            for index, part in enumerate(parts)
        ]

    def process_results(self, doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
        """The metrics of one document, from the log-probabilities of its answers alone."""
        between, apart = self._between[doc["line"]]
        sums = [loglikelihood for loglikelihood, _ in results]
        if between and apart:
            *sums, taken_off = sums
            sums = [total - taken_off for total in sums]
        scores = score_choices(doc, sums, 0 if apart else len(between.encode()))
        return {name: score for name, score in scores.items() if name in self._metric_fn_list}


def cut_prompt(
    prompt: str, choices: list[str], encode: Callable[[str], list[int]] | None
) -> tuple[str, str, bool]:
    """The prompt up to where a token ends and no blank stands, the rest of it, and whether answers are tokens apart.

    Args:
        encode: text to token ids; None: not known, so blanks are taken for a part of the answers' tokens.
    """
    if encode is None:
        head = prompt.rstrip()
        return head, prompt[len(head) :], head == prompt
    ids, wholes = encode(prompt), [encode(prompt + choice) for choice in choices]
    apart = all(whole[: len(ids)] == ids for whole in wholes)
    if apart:
        wholes.append(ids)
    for end in range(len(prompt), 0, -1):
        if prompt[end - 1].isspace():
            continue
        ids = encode(prompt[:end])
        if all(whole[: len(ids)] == ids for whole in wholes):
            return prompt[:end], prompt[end:], apart
    raise ValueError(f"no token of the prompt {prompt[:60]!r} ends before the answer begins")


# ------------------------------------------------------------------------------------------------ metrics


def bare_choices(document: dict[str, Any]) -> list[str]:
    """The choices without the end of the turn that is a control token."""
    return [text.removesuffix(document.get("end_of_turn", "")) for text in document["choices"]]


def score_choices(document: dict[str, Any], sums: list[float], more_bytes: int = 0) -> dict[str, float]:
    """``acc``: the true answer has the highest log-probability; ``acc_norm``: the highest per UTF-8 byte.

    ``margin``: log-probability of the first answer above that of the second, in nats.  A tie is not a hit, so a
    model that cannot tell answers apart does not win by their order.

    Args:
        sums: nats of every choice, then, where the document has an ``end_of_turn``, of every choice without it.
        more_bytes: that were scored with every answer.
    """
    label, bare = document["label"], bare_choices(document)
    whole, alone = sums[: len(bare)], sums[-len(bare) :]
    per_byte = [total / (len(text.encode()) + more_bytes) for total, text in zip(alone, bare, strict=True)]
    return {"acc": wins(whole, label), "acc_norm": wins(per_byte, label), "margin": whole[0] - whole[1]}


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
