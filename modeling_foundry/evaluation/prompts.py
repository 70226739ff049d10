"""The questions of the stop rate, from the user's own held-out chat file or from the quickstart's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.chat_linter import read_rows
from ..data.chat_rows import MalformedRowError, turns_of
from ..settings import FoundryError
from .selection import draw
from .settings import EvaluationSettings

SUMMARIES = "sft_heldout.jsonl"


@dataclass(frozen=True)
class Prompt:
    """A held-out question with its true answer.

    Args:
        earlier: messages before the question, as ``role, content``.
        line: of its file.
    """

    module: str
    function: str
    content: str
    truth: str
    earlier: tuple[tuple[str, str], ...] = ()
    line: int = 0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation up to the question."""
        before = [{"role": role, "content": content} for role, content in self.earlier]
        return [*before, {"role": "user", "content": self.content}]


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
    prompts = [prompt_of(row, path, number) for number, row in read_rows(path, sys.maxsize)]
    return [prompts[index] for index in draw(len(prompts), settings.num_stop_prompts, settings.seed)]


def prompt_of(row: dict[str, Any], path: Path, number: int) -> Prompt:
    """A conversation as what was said before, the last question, and its true answer."""
    try:
        *earlier, user, assistant = turns_of(row, "messages")
    except MalformedRowError as error:
        raise FoundryError(f"{path}:{number}: {error}; expected messages that end with an answer") from error
    return Prompt(
        str(row.get("module", f"line {number}")), str(row.get("function", "")), user["content"],
        assistant["content"], tuple((message["role"], message["content"]) for message in earlier), number,
    )  # fmt: skip
