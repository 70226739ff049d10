"""The questions of the stop rate, from the user's own held-out chat file or from the quickstart's."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...data.samples.conversations import MalformedRowError, Row
from ...data.samples.rows import rows_of_file
from ...data.samples.samples import checked_sample
from ...settings import FoundryError
from ..settings import EvaluationSettings
from .selection import draw

SUMMARIES = "sft_heldout.jsonl"


@dataclass(frozen=True)
class Prompt:
    """A held-out question with its true answer.

    Args:
        messages: what was said before the answer, the question last.
        carried: what the chat template gets beside them: ``tools``, ``chat_template_kwargs``.
        where: the file and line of it.
    """

    module: str
    function: str
    messages: list[dict[str, Any]]
    truth: str
    carried: dict[str, Any] = field(default_factory=dict)
    where: str = ""

    @property
    def content(self) -> str:
        """The question alone."""
        return self.messages[-1].get("content") or ""


def prompts_file(settings: EvaluationSettings) -> Path:
    """Where the questions are read."""
    return Path(settings.prompts_file or Path(settings.data_dir) / SUMMARIES)


def drawn_prompts(settings: EvaluationSettings) -> list[Prompt]:
    """Questions in the seed's order.

    Raises:
        FoundryError: no such file, or a line that is no conversation.
    """
    path = prompts_file(settings)
    if not path.is_file():
        raise FoundryError(
            f"{path}: no such file; the stop rate asks its questions: name a held-out chat file (JSON lines with "
            "messages) by prompts_file, or set num_stop_prompts: 0"
        )
    rows = rows_of_file(path)
    prompts = [prompt_of(row, rows.where(number), rows.is_typed) for number, row in rows.rows]
    if not prompts:
        raise FoundryError(f"{path}: holds no conversations; expected rows with messages")
    return [prompts[index] for index in draw(len(prompts), settings.num_stop_prompts, settings.seed)]


def prompt_of(row: Row | MalformedRowError, where: str, is_typed: bool = False) -> Prompt:
    """A row of a chat file, checked as SFT checks it, as what was said before its last answer."""
    try:
        if isinstance(row, MalformedRowError):
            raise row
        sample = checked_sample(row, "sft", is_typed)
    except MalformedRowError as error:
        raise FoundryError(f"{where}: {error}") from error
    *said, answer = sample.pop("messages")
    if not said:
        raise FoundryError(f"{where}: messages: expected a question before the answer")
    names = (str(row.get("module") or where.replace(".", " ")), str(row.get("function") or ""))
    return Prompt(*names, said, answer.get("content") or "", sample, where)
