"""``prepare_data.py verify``: a corpus, its rows and its tokenizer against what was written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...settings import FoundryError
from ...terminal import console
from ..tokens.corpus import TokenCorpus
from ..tokens.prepared import MANIFEST_NAME, load_prepared
from ..tokens.verification import verify_corpus
from ..workers.executors import num_workers
from .settings import VerifySettings

SAMPLE_TOKENS = 256


def verify(settings: VerifySettings) -> None:
    """The command: read everything, whatever was verified before.

    Raises:
        FoundryError: the first fault, by file.
    """
    folder = Path(settings.data_dir)
    rows = None if settings.model is None else embedding_rows(settings.model)
    if (folder / MANIFEST_NAME).is_file():
        prepared = load_prepared(folder)
        vocab_size = max(prepared.shard(split).header.vocab_size for split in ("train", "heldout"))
        for split in ("train", "heldout"):
            prepared.shard(split).verify()
        check_rows(folder, vocab_size, rows)
        check_tokenizer(prepared.tokenizer_folder, settings.model)
        console.print(
            f"verify: {folder}: all {len(prepared.manifest['files'])} files are as they were written"
        )
        return
    corpus = TokenCorpus.open(folder)
    verdict = verify_corpus(corpus, num_workers(settings.workers), again=True)
    check_rows(folder, int(corpus.content["vocab_size"]), rows)
    check_tokenizer(corpus.tokenizer_folder, settings.model)
    console.print(
        f"verify: {folder}: {verdict.num_tokens:,} tokens in {verdict.num_shards_read:,} shards are as they were "
        f"written; every document ends with id {corpus.content['eos_token_id']}, every id is below "
        f"{corpus.content['vocab_size']:,}" + (f", the model has {rows:,} rows" if rows else "")
    )
    from .pictures import coloured_sample

    shown = corpus.split("train" if "train" in corpus.splits else corpus.splits[0])
    length = min(SAMPLE_TOKENS, shown.num_tokens)
    if length:
        console.print("\none packed sequence, a colour a document:", style="bold")
        console.print(coloured_sample(corpus, shown, length, seed=0))


def embedding_rows(model: str) -> int:
    """``vocab_size`` of a ``config.json`` or of the checkpoint folder that holds it.

    Raises:
        FoundryError: there is none.
    """
    path = Path(model) / "config.json" if Path(model).is_dir() else Path(model)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["vocab_size"]
        if type(rows) is not int:
            raise ValueError(f"vocab_size: {rows!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoundryError(f"model: {path} is not a config.json with a vocab_size ({error})") from error
    return rows


def check_rows(folder: Path, vocab_size: int, rows: int | None) -> None:
    """Raise FoundryError where an embedding of ``rows`` cannot hold every id of the tokenizer."""
    if rows is not None and rows < vocab_size:
        raise FoundryError(
            f"{folder}: its tokenizer has {vocab_size:,} ids, the embedding only {rows:,} rows; give at least as many"
        )


def check_tokenizer(folder: Path, model: str | None) -> None:
    """Raise FoundryError where the model's folder holds a tokenizer that gives other ids.

    Compared is what decides ids; a library that saves a tokenizer again may write its other keys otherwise.
    """
    if model is None or not (Path(model) / "tokenizer.json").is_file():
        return
    ours, theirs = (_tokenizer(Path(path) / "tokenizer.json") for path in (folder, model))
    for key in ("model", "normalizer", "pre_tokenizer"):
        if _without_flags(ours.get(key)) != _without_flags(theirs.get(key)):
            raise FoundryError(
                f"{folder}: not the tokenizer of {model}: their {key} differs; tokenize with the model's"
            )
    added = [
        {token["id"]: token["content"] for token in each.get("added_tokens", [])} for each in (ours, theirs)
    ]
    if added[0] != added[1]:
        raise FoundryError(f"{folder}: not the tokenizer of {model}: their added tokens differ")


def _tokenizer(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise FoundryError(f"{path}: not a tokenizer.json ({' '.join(str(error).split())})") from error


def _without_flags(part: Any) -> Any:
    """A part of tokenizer.json with merges in one form ("a b" and ["a", "b"] are the same)."""
    if isinstance(part, dict) and "merges" in part:
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in part["merges"]]
        return {"vocab": part["vocab"], "merges": merges}
    return part
