"""From text to a prepared data folder: the standard library, or any plain-text file."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerFast

from ..files import sha256_of_file
from ..settings import FoundryError
from .corpus import Module, read_standard_library, split_modules
from .folder import (
    TOKENIZER_FOLDER,
    is_prepared,
    print_statistics,
    write_json_lines,
    write_manifest,
)
from .functions import conversation, documented_functions, preference_pairs
from .settings import DataSettings
from .shards import write_shard
from .tokenizer import encode_documents, train_tokenizer

console = Console(highlight=False)


def prepare(settings: DataSettings) -> Path:
    """Make the folder the settings describe; do nothing when it is complete already.

    An interrupted preparation starts over: the whole takes less than a minute.

    Raises:
        FoundryError: the source cannot be read, or the folder holds other data.
    """
    folder = Path(settings.output_dir)
    identity = _identity(settings)
    if is_prepared(folder, settings, identity):
        console.print(f"data: complete already, {folder} (nothing to do)")
        return folder
    if settings.source == "text_file":
        statistics = _prepare_text_file(settings, folder)
    else:
        statistics = _prepare_standard_library(settings, folder)
    write_manifest(folder, settings, identity, statistics)
    print_statistics(folder, statistics)
    return folder


def _identity(settings: DataSettings) -> dict[str, Any]:
    if settings.source == "standard_library":
        return {"python": platform.python_version()}
    try:
        return {"text_file_sha256": sha256_of_file(str(settings.text_file))}
    except OSError as error:
        raise FoundryError(f"{settings.text_file}: cannot read the text file ({error.strerror})") from error


def _prepare_standard_library(settings: DataSettings, folder: Path) -> dict[str, Any]:
    modules, left_out = read_standard_library(settings.include_tests, settings.max_modules)
    train, held_out = split_modules(modules, settings.held_out_fraction)
    table = _write_text(folder, train, held_out, settings.vocab_size)
    functions = [documented_functions(side) for side in (train, held_out)]
    for name, side in zip(("train", "heldout"), functions, strict=True):
        if len(side) < 2:
            raise FoundryError(
                f"{folder}: only {len(side)} documented function(s) in {name}; give more modules"
            )
        write_json_lines(folder / f"sft_{name}.jsonl", map(conversation, side))
        write_json_lines(folder / f"dpo_{name}.jsonl", preference_pairs(side))
    table["modules"] = (len(train), len(held_out))
    table["documented functions"] = (len(functions[0]), len(functions[1]))
    families = sorted({module.family for module in held_out})
    return {"table": table, "held_out_families": families, "left_out": left_out}


def _prepare_text_file(settings: DataSettings, folder: Path) -> dict[str, Any]:
    """The end of the file is held out, cut at a line."""
    path = Path(str(settings.text_file))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FoundryError(
            f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8 first"
        ) from error
    cut = text.rfind("\n", 0, int(len(text) * (1 - settings.held_out_fraction))) + 1
    if not text[:cut].strip() or not text[cut:].strip():
        raise FoundryError(f"{path}: too short to split at a line into text to train on and text to hold out")
    train, held_out = Module(path.stem, text[:cut]), Module(path.stem, text[cut:])
    return {"table": _write_text(folder, [train], [held_out], settings.vocab_size)}


def _write_text(
    folder: Path, train: Sequence[Module], held_out: Sequence[Module], vocab_size: int
) -> dict[str, tuple[float, float]]:
    """Tokenizer from the train side alone, one shard a side, the raw held-out text; returns counts."""
    tokenizer = train_tokenizer([module.text for module in train], vocab_size)
    tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    tokenizer_hash = sha256_of_file(folder / TOKENIZER_FOLDER / "tokenizer.json")
    write_json_lines(
        folder / "heldout.jsonl", ({"module": module.name, "text": module.text} for module in held_out)
    )
    counts = []
    for name, side in (("train", train), ("heldout", held_out)):
        counts.append(_write_side(folder / f"{name}.ds", side, tokenizer, tokenizer_hash))
    return {key: (counts[0][key], counts[1][key]) for key in counts[0]}


def _write_side(
    path: Path, modules: Sequence[Module], tokenizer: PreTrainedTokenizerFast, tokenizer_hash: str
) -> dict[str, float]:
    texts = [module.text for module in modules]
    documents = encode_documents(tokenizer, texts)
    header = write_shard(path, documents, len(tokenizer), int(tokenizer.eos_token_id), tokenizer_hash)
    num_bytes = sum(len(text.encode()) for text in texts)
    return {
        "documents": header.num_documents,
        "bytes": num_bytes,
        "tokens": header.num_tokens,
        "bytes per token": num_bytes / header.num_tokens,
    }
