"""From text to a prepared data folder: the standard library, or any plain-text file."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import sha256_of_file, sync_folder
from ...settings import FoundryError, sought
from ..summary import Rows, length_percentiles, print_statistics, repeated_line_share, side_by_side
from ..tokenizer.encoders import encode_documents
from ..tokenizer.training import load_tokenizer, train_tokenizer
from ..tokens.prepared import (
    SPLITS,
    TOKENIZER_FOLDER,
    clear_folder,
    is_prepared,
    seal_folder,
    start_folder,
    write_json_lines,
)
from ..tokens.shards import ShardHeader, TokenShard, write_shard
from .docstring_samples import (
    DocumentedFunction,
    conversation,
    documented_functions,
    preference_pairs,
)
from .settings import DataSettings
from .standard_library import Module, corpus_sha256, read_standard_library, split_modules
from .text_file import read_text_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Part of what a folder is known by: raise it when the same settings come to give other bytes.
PREPARATION_VERSION = 2


def prepare(settings: DataSettings) -> Path:
    """Make the folder the settings describe; do nothing when it is complete already.

    Interrupted and run again, it goes on: the tokenizer and the token shards that are whole are kept.

    Raises:
        FoundryError: the source cannot be read, or the folder holds other data.
    """
    folder = Path(settings.output_dir)
    content = content_of(settings)
    if not settings.overwrite and is_prepared(folder, content):
        print(f"data: complete already, {folder} (nothing to do)")
        return folder
    source = _read(settings)
    try:
        if settings.overwrite:
            clear_folder(folder)
        if start_folder(folder, content):
            print(f"data: going on with {folder}, which was interrupted")
    except OSError as error:
        raise FoundryError(
            f"{folder}: cannot write there ({error.strerror}); give another --output_dir"
        ) from error
    tokenizer = _tokenizer_of(folder, source.train, settings.vocab_size)
    statistics = {"table": _write_files(folder, source, tokenizer), "notes": source.notes}
    seal_folder(folder, content, statistics)
    print_statistics(folder, statistics)
    return folder


def content_of(settings: DataSettings) -> dict[str, Any]:
    """All that decides what a folder holds; where it is, and where its source is, do not.

    Raises:
        FoundryError: the text file cannot be read.
    """
    content: dict[str, Any] = {
        "preparation": PREPARATION_VERSION,
        "source": settings.source,
        "vocab_size": settings.vocab_size,
        "held_out_fraction": settings.held_out_fraction,
    }
    if settings.source == "standard_library":
        python = f"{platform.python_implementation()} {platform.python_version()}"
        return content | {
            "include_tests": settings.include_tests, "max_modules": settings.max_modules, "python": python,
        }  # fmt: skip
    try:
        return content | {"text_file_sha256": sha256_of_file(str(settings.text_file))}
    except OSError as error:
        raise FoundryError(
            f"{sought(str(settings.text_file))}: cannot read the text file ({error.strerror})"
        ) from error


# ----------------------------------------------------------------------------------------------- source


@dataclass(frozen=True)
class Source:
    """What was read: documents of both sides, functions of both sides where there are any, facts to print."""

    train: list[Module]
    held_out: list[Module]
    functions: tuple[list[DocumentedFunction], list[DocumentedFunction]] | None = None
    notes: list[str] = field(default_factory=list)


def _read(settings: DataSettings) -> Source:
    if settings.source == "text_file":
        return Source(*read_text_file(str(settings.text_file), settings.held_out_fraction))
    modules, left_out = read_standard_library(settings.include_tests, settings.max_modules)
    train, held_out = split_modules(modules, settings.held_out_fraction)
    train_functions = documented_functions(train)
    held_out_functions = documented_functions(held_out, known=train_functions)
    for side, functions in (("train", train_functions), ("held-out", held_out_functions)):
        if len(functions) < 2:
            raise FoundryError(
                f"{len(functions)} documented function(s) in the {side} modules; give more modules"
            )
    shared = repeated_line_share([module.text for module in train], [module.text for module in held_out])
    notes = [
        f"held out: {', '.join(sorted({module.family for module in held_out}))}",
        f"lines of the held-out text that also stand in the train text: {shared:.1%}",
        "left out: " + ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in left_out.items()),
        f"corpus SHA-256: {corpus_sha256(modules)}",
    ]
    return Source(train, held_out, (train_functions, held_out_functions), notes)


# ----------------------------------------------------------------------------------------------- samples


def _write_samples(
    folder: Path, split: str, functions: Sequence[DocumentedFunction], tokenizer: PreTrainedTokenizerFast
) -> dict[str, float]:
    """Conversations and preference pairs of one side; returns counts and lengths in tokens."""
    pairs = preference_pairs(functions)
    write_json_lines(folder / f"sft_{split}.jsonl", map(conversation, functions))
    write_json_lines(folder / f"dpo_{split}.jsonl", pairs)
    prompts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": function.question}] for function in functions],
        add_generation_prompt=True,
        return_dict=True,
    )["input_ids"]
    answers = encode_documents(tokenizer, [function.summary for function in functions])
    return {
        "conversations": len(functions),
        "preference pairs": len(pairs),
        "of them in one module": sum(pair["difficulty"] == "same module" for pair in pairs),
        **length_percentiles("prompt tokens", map(len, prompts)),
        **length_percentiles("answer tokens", (len(ids) + 1 for ids in answers)),  # and the end of the turn
    }


# ------------------------------------------------------------------------------------ tokenizer and shards


def _tokenizer_of(folder: Path, train: Sequence[Module], vocab_size: int) -> PreTrainedTokenizerFast:
    """The folder's tokenizer, trained from the train side alone where it is not there yet."""
    target = folder / TOKENIZER_FOLDER
    if not target.is_dir():
        temporary = folder / f".{TOKENIZER_FOLDER}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        train_tokenizer([module.text for module in train], vocab_size).save_pretrained(temporary)
        os.replace(temporary, target)
        sync_folder(folder)
    return load_tokenizer(target)


def _write_files(folder: Path, source: Source, tokenizer: PreTrainedTokenizerFast) -> Rows:
    """One shard and the samples of each side, and the raw held-out text."""
    rows = ({"module": module.name, "text": module.text} for module in source.held_out)
    write_json_lines(folder / "heldout.jsonl", rows)
    facts = []
    for place, split in enumerate(SPLITS):
        modules = (source.train, source.held_out)[place]
        facts.append(_write_side(folder, split, modules, tokenizer))
        if source.functions is not None:
            facts[-1] |= _write_samples(folder, split, source.functions[place], tokenizer)
    return side_by_side(*facts)


def _write_side(
    folder: Path, split: str, modules: Sequence[Module], tokenizer: PreTrainedTokenizerFast
) -> dict[str, float]:
    path, texts = folder / f"{split}.ds", [module.text for module in modules]
    tokenizer_hash = sha256_of_file(folder / TOKENIZER_FOLDER / "tokenizer.json")
    header = _finished_header(path, tokenizer_hash)
    if header is None:
        documents = encode_documents(tokenizer, texts)
        header = write_shard(path, documents, len(tokenizer), int(tokenizer.eos_token_id), tokenizer_hash)
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "documents": header.num_documents,
        "bytes": num_bytes,
        "tokens": header.num_tokens,
        "bytes per token": num_bytes / header.num_tokens,
    }


def _finished_header(path: Path, tokenizer_hash: str) -> ShardHeader | None:
    """The header of a whole shard that an interrupted preparation left; None where it must be written."""
    try:
        shard = TokenShard.open(path)
        shard.verify()
    except FoundryError:
        return None
    return shard.header if shard.header.tokenizer_sha256 == tokenizer_hash else None
