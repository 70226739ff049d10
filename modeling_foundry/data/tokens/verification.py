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

from tqdm.auto import tqdm

from ...files import sha256_of_file, write_atomically
from ...settings import FoundryError
from .corpus import CORPUS_NAME, CorpusSplit, ShardEntry, TokenCorpus
from .mapped_files import num_mapped_files
from .shards import TokenShard, header_path, index_path

VERIFIED_NAME = "verified.json"
FILES_OF_A_THREAD = 4
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What a check found right: tokens, and shards read against shards only looked at."""

    num_tokens: int
    num_shards_read: int
    num_shards_known: int


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
