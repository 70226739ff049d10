"""The keys of a ``data.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class DataSettings:
    """What prepare_data.py makes and where."""

    output_dir: str = _help("folder to write", "runs/quickstart/data")
    source: Literal["standard_library", "text_file"] = _help("where the text comes from", "standard_library")
    text_file: str | None = _help("plain-text file; implies source: text_file", None)
    vocab_size: int = _help("ids of the tokenizer, special tokens included", 2048)
    held_out_fraction: float = _help("share of module families, or of the text file's end, held out", 0.1)
    include_tests: bool = _help(
        "standard library: its test folders too (31 MB, where they are installed)", False
    )
    max_modules: int | None = _help("standard library: only the first N modules, to try things out", None)
    overwrite: bool = _help("replace a folder prepared with other settings", False)

    def __post_init__(self) -> None:
        if self.text_file is not None:
            self.source = "text_file"
        if self.source == "text_file" and self.text_file is None:
            raise ValueError("text_file: missing; expected a path, because source is text_file")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(
                f"held_out_fraction: expected a number between 0 and 1, found {self.held_out_fraction}"
            )
        if self.vocab_size < 300:
            raise ValueError(
                f"vocab_size: expected at least 300 (256 bytes and the special tokens), found {self.vocab_size}"
            )
        if self.max_modules is not None and self.max_modules < 2:
            raise ValueError(f"max_modules: expected at least 2, found {self.max_modules}")


@dataclass
class CleanSettings:
    """What ``prepare_data.py clean`` reads, which steps it takes, and where it writes."""

    input: str = _help("a folder, file or glob of .jsonl, .jsonl.gz, .jsonl.zst and .parquet", "corpus")
    output_dir: str = _help("folder to write", "runs/clean/data")
    text_key: str = _help("key or column of the text", "text")
    id_key: str = _help("key or column of the id; file and row stand in where there is none", "id")
    filters: list[str] = field(
        default_factory=list, metadata={"help": "datatrove's filters by their short names, in this order"}
    )
    filter_options: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "other than their defaults: {gopher_quality: {min_doc_words: 20}}"},
    )
    language: str = _help("how words and sentences are split: a language code of datatrove", "eng")
    dedup: Literal["none", "exact", "minhash"] = _help("which duplicates are removed", "none")
    decontaminate: list[str] = field(
        default_factory=list,
        metadata={"help": "JSONL files of evaluation items, and lm-eval tasks of task_dir"},
    )
    decontaminate_mode: Literal["remove", "cut"] = _help(
        "what happens to a document that holds an item", "remove"
    )
    ngram_size: int = _help("words in a row that make a match", 13)
    eval_text_keys: list[str] = field(
        default_factory=lambda: ["text", "question", "answer"],
        metadata={"help": "keys of an evaluation file's text, joined in this order"},
    )
    task_dir: str = _help("folder of lm-eval task files", "eval_tasks")
    workers: int = _help("processes; one takes a file at a time", 1)
    overwrite: bool = _help("replace what was cleaned with other settings", False)

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
