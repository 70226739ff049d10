"""The settings of ``prepare_data.py clean``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...settings import setting


@dataclass
class CleanSettings:
    """What ``prepare_data.py clean`` reads, which steps it takes, and where it writes."""

    input: str = setting("a folder, file or glob of .jsonl (also .gz or .zst) and .parquet", "corpus")
    output_dir: str = setting("folder to write", "runs/clean/data")
    text_key: str = setting("key or column of the text", "text")
    id_key: str = setting("key or column of the id; file and row stand in where there is none", "id")
    filters: list[str] = field(
        default_factory=list, metadata={"help": "datatrove's filters by their short names, in this order"}
    )
    filter_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "other than their defaults: {gopher_quality: {min_doc_words: 20}}"},
    )
    language: str = setting("how words and sentences are split: a language code of datatrove", "eng")
    dedup: Literal["none", "exact", "minhash"] = setting("which duplicates are removed", "none")
    decontaminate: list[str] = field(
        default_factory=list,
        metadata={"help": "JSONL files of evaluation items, and lm-eval tasks of task_dir"},
    )
    decontaminate_mode: Literal["remove", "cut"] = setting(
        "what happens to a document that holds an item", "remove"
    )
    ngram_size: int = setting("words in a row that make a match", 13)
    eval_text_keys: list[str] = field(
        default_factory=lambda: ["text", "question", "answer"],
        metadata={"help": "keys of an evaluation file's text, joined in this order"},
    )
    task_dir: str = setting("folder of lm-eval task files", "eval_tasks")
    workers: int = setting("processes; one takes a file at a time", 1)
    overwrite: bool = setting("replace what was cleaned with other settings", False)

    def __post_init__(self) -> None:
        for name in ("workers", "ngram_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        for name in ("filters", "decontaminate"):
            values = getattr(self, name)
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise ValueError(f"{name}: {twice} is given twice; keep one")
        if not self.eval_text_keys:
            raise ValueError("eval_text_keys: expected at least one key")
