"""Every byte of a corpus against what was written down, before a GPU is used.

The first check reads every shard.  It keeps size and modification time of each in ``verified.json``; later checks
read again what differs from that, so that a start of training costs one look at each file.  Where the folder cannot
be written (a read-only mount), nothing is kept and every check reads all.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tqdm.auto import tqdm

from ..files import sha256_of_file, write_atomically
from ..settings import FoundryError
from .executors import num_workers
from .folder import MANIFEST_NAME, load_prepared
from .mapped_files import num_mapped_files
from .settings import VerifySettings
from .shards import TokenShard, header_path, index_path
from .token_corpus import CORPUS_NAME, CorpusSplit, ShardEntry, TokenCorpus

VERIFIED_NAME = "verified.json"
SAMPLE_TOKENS = 256
FILES_OF_A_THREAD = 4
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What a check found right: tokens, and shards read against shards only looked at."""

    num_tokens: int
    num_shards_read: int
    num_shards_known: int


def verify(settings: VerifySettings) -> None:
    """The command: read everything, whatever was verified before.

    Raises:
        FoundryError: the first fault, by file.
    """
    folder, console = Path(settings.data_dir), Console(highlight=False, soft_wrap=True, markup=False)
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
    from .inspection import coloured_sample

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


def verify_corpus(corpus: TokenCorpus, workers: int = 1, again: bool = False) -> Verdict:
    """Check the tokenizer, and each shard that is not known to be as it was when it was last read.

    Args:
        again: read every shard, whatever was verified before.

    Raises:
        FoundryError: the first fault: a file missing, cut off, altered, of another tokenizer, with an id outside the
            vocabulary or a document without its end.
    """
    tokenizer = corpus.tokenizer_folder / "tokenizer.json"
    if not tokenizer.is_file() or sha256_of_file(tokenizer) != corpus.content["tokenizer_sha256"]:
        raise FoundryError(f"{tokenizer}: not the tokenizer that {CORPUS_NAME} lists; tokenize again")
    known = _forget(corpus) if again else _known(corpus)
    shards = [
        (split, entry) for name in corpus.splits for split in [corpus.split(name)] for entry in split.entries
    ]
    states = {entry.path: _state(corpus.folder / entry.path) for _, entry in shards}
    unknown = [(split, entry) for split, entry in shards if known.get(entry.path) != states[entry.path]]
    num_threads = max(1, min(workers, num_mapped_files() // FILES_OF_A_THREAD))
    with ThreadPoolExecutor(num_threads) as pool:
        bar = tqdm(
            total=sum(entry.num_tokens for _, entry in unknown), desc="verify", unit="token", unit_scale=True,
            mininterval=0.5, disable=sum(entry.num_tokens for _, entry in unknown) < 10_000_000,
        )  # fmt: skip
        with bar:
            for entry in pool.map(lambda pair: _verify_shard(corpus, *pair), unknown):
                bar.update(entry.num_tokens)
    if unknown:
        _remember(corpus, states)
    num_tokens = sum(entry.num_tokens for _, entry in shards)
    return Verdict(num_tokens, len(unknown), len(shards) - len(unknown))


def _verify_shard(corpus: TokenCorpus, split: CorpusSplit, entry: ShardEntry) -> ShardEntry:
    shard = TokenShard.open(corpus.folder / entry.path)
    header = shard.header
    for name, found, expected in _expectations(corpus, entry, header):
        if found != expected:
            raise FoundryError(f"{shard.path}: {name} is {found}, but {CORPUS_NAME} says {expected}")
    shard.verify()
    return entry


def _expectations(corpus: TokenCorpus, entry: ShardEntry, header: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in ("num_tokens", "num_documents", "tokens_sha256"):
        yield name, getattr(header, name), getattr(entry, name)
    for name in ("tokenizer_sha256", "vocab_size", "eos_token_id"):
        yield name, getattr(header, name), corpus.content[name]


def _state(path: Path) -> list[int]:
    """Sizes and modification times of the three files of a shard."""
    state = []
    for file in (path, index_path(path), header_path(path)):
        try:
            found = file.stat()
        except OSError as error:
            raise FoundryError(f"{file}: missing, though {CORPUS_NAME} lists it; tokenize again") from error
        state += [found.st_size, found.st_mtime_ns]
    return state


def _remember(corpus: TokenCorpus, states: dict[str, list[int]]) -> None:
    path, verified = corpus.folder / VERIFIED_NAME, {"corpus": corpus.fingerprint, "shards": states}
    try:
        write_atomically(path, json.dumps(verified) + "\n")
    except OSError as error:  # a corpus may lie where nobody may write: slower, not wrong
        logger.warning(
            "%s: cannot be written (%s); the next check reads every shard again", path, error.strerror
        )


def _forget(corpus: TokenCorpus) -> dict[str, list[int]]:
    """Nothing is known from here on, later either, should a fault be found."""
    with contextlib.suppress(OSError):  # of a read-only mount; what it lists is read again all the same
        (corpus.folder / VERIFIED_NAME).unlink(missing_ok=True)
    return {}


def _known(corpus: TokenCorpus) -> dict[str, list[int]]:
    try:
        verified = json.loads((corpus.folder / VERIFIED_NAME).read_text(encoding="utf-8"))
        return dict(verified["shards"]) if verified["corpus"] == corpus.fingerprint else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # nothing is known: everything is read
