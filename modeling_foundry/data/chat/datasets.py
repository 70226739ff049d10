"""Public chat and preference datasets: where each is, its licence, and how its rows become TRL's formats."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..samples import conversations as chat_rows
from ..samples.conversations import MalformedRowError, Row, Sample
from .message_trees import Outcome, threads

Kind = Literal["sft", "preference"]
Converter = Callable[[Row], Sample]


@dataclass(frozen=True)
class ChatDataset:
    """One dataset.

    Args:
        repository: name on the Hub.
        kind: ``sft`` gives ``messages``; ``preference`` gives ``prompt``, ``chosen`` and ``rejected``.
        licence: as its card states it.
        columns: what a local file of it must hold, for the message that asks for one.
        convert: one row to one sample; None where samples are threads through a tree of rows.
    """

    repository: str
    split: str
    kind: Kind
    licence: str
    columns: str
    convert: Converter | None

    def samples(
        self, rows: Iterable[tuple[int, Row]], language: str | None = None
    ) -> Iterator[tuple[int, Outcome]]:
        """Each row's outcome with its number: a sample, what is malformed, or what is left out."""
        return threads(rows, language) if self.convert is None else _each(self.convert, rows)


def _each(convert: Converter, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Outcome]]:
    for number, row in rows:
        try:
            yield number, convert(row)
        except MalformedRowError as error:
            yield number, error


DATASETS: dict[str, ChatDataset] = {
    "alpaca": ChatDataset(
        "tatsu-lab/alpaca", "train", "sft", "cc-by-nc-4.0",
        "instruction, input, output", chat_rows.alpaca,
    ),
    "alpaca_cleaned": ChatDataset(
        # Revisions of its card say one or the other; what it was made from is non-commercial.
        "yahma/alpaca-cleaned", "train", "sft", "cc-by-4.0 or cc-by-nc-4.0",
        "instruction, input, output", chat_rows.alpaca,
    ),
    "dolly": ChatDataset(
        "databricks/databricks-dolly-15k", "train", "sft", "cc-by-sa-3.0",
        "instruction, context, response", chat_rows.dolly,
    ),
    "oasst1": ChatDataset(
        "OpenAssistant/oasst1", "train", "sft", "apache-2.0",
        "message_id, parent_id, role, text, lang, rank, deleted", None,
    ),
    "ultrachat": ChatDataset(
        "HuggingFaceH4/ultrachat_200k", "train_sft", "sft", "mit",
        "messages", chat_rows.ultrachat,
    ),
    "slimorca": ChatDataset(
        "Open-Orca/SlimOrca", "train", "sft", "mit",
        "conversations", chat_rows.slimorca,
    ),
    "capybara": ChatDataset(
        "LDJnr/Capybara", "train", "sft", "apache-2.0",
        "conversation", chat_rows.capybara,
    ),
    "capybara_dpo": ChatDataset(
        "argilla/distilabel-capybara-dpo-7k-binarized", "train", "preference", "apache-2.0",
        "chosen, rejected", chat_rows.binarized,
    ),
    "ultrafeedback": ChatDataset(
        "HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "preference", "mit",
        "chosen, rejected", chat_rows.binarized,
    ),
    "hh_rlhf": ChatDataset(
        "Anthropic/hh-rlhf", "train", "preference", "mit",
        "chosen, rejected", chat_rows.hh_rlhf,
    ),
    "orca_dpo": ChatDataset(
        "Intel/orca_dpo_pairs", "train", "preference", "apache-2.0",
        "system, question, chosen, rejected", chat_rows.orca_dpo,
    ),
}  # fmt: skip
