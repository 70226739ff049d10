"""Many token shards read as one row of tokens, opened in the time it takes to read one index file."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...files import sha256_of_file, write_atomically
from ...settings import FoundryError
from .shards import ShardHeader, TokenShard

CORPUS_NAME = "corpus.json"
TOKENIZER_FOLDER = "tokenizer"
VERSION = 1
# Headers that a split keeps; how many files may be mapped is one limit for all (mapped_files.py).
MAX_KEPT_HEADERS = 1000


class TokenSource(Protocol):
    """Tokens in a row, with the places where documents end."""

    @property
    def path(self) -> Path: ...

    @property
    def num_tokens(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """The ids [start, stop); of the mapped file where they lie in one shard."""

    def document_ends_in(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ends e of documents with start < e < stop, ascending."""


@dataclass(frozen=True)
class ShardEntry:
    """What the corpus index says of one shard."""

    path: str
    num_tokens: int
    num_documents: int
    tokens_sha256: str


class CorpusSplit:
    """The shards of one split, one after the other, as one :class:`TokenSource`.

    Opening reads no shard.  A shard's header is read, and its files mapped, when a token of it is first asked for.
    """

    def __init__(self, folder: Path, name: str, entries: list[ShardEntry]) -> None:
        self.path, self.name, self.entries = folder, name, entries
        self.offsets = np.concatenate(
            [[0], np.cumsum([entry.num_tokens for entry in entries], dtype=np.int64)]
        )
        self._known: OrderedDict[int, TokenShard] = OrderedDict()

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return sum(entry.num_documents for entry in self.entries)

    def shard(self, number: int) -> TokenShard:
        """One shard, opened.

        Raises:
            FoundryError: it is missing, cut off, or not the one that was tokenized.
        """
        if number in self._known:
            self._known.move_to_end(number)
            return self._known[number]
        entry = self.entries[number]
        shard = TokenShard.open(self.path / entry.path)
        if shard.header.tokens_sha256 != entry.tokens_sha256:
            raise FoundryError(f"{shard.path}: not the shard that {CORPUS_NAME} lists; tokenize it again")
        self._known[number] = shard
        if len(self._known) > MAX_KEPT_HEADERS:
            self._known.popitem(last=False)
        return shard

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """The ids [start, stop): a view of the mapped file, or a copy where they span shards."""
        parts = iter(self._parts(start, stop))
        shard, first, last, offset = next(parts)
        if offset + last == stop:
            return shard.read(first, last)
        ids, end = np.empty(stop - start, dtype=shard.header.dtype), last - first
        ids[:end] = shard.read(first, last)
        for (
            shard,
            first,
            last,
            _,
        ) in parts:  # one at a time: a block may run across more files than may be open
            ids[end : end + last - first] = shard.read(first, last)
            end += last - first
        return ids

    def document_ends_in(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ends e of documents with start < e < stop, ascending."""
        ends = []
        for shard, first, last, offset in self._parts(start, stop):
            inside = shard.document_ends_in(first, last) + offset
            ends.append(inside)
            if offset + last < stop:  # a shard ends with a document
                ends.append(np.array([offset + last]))
        return np.concatenate(ends)

    def _parts(self, start: int, stop: int) -> Iterable[tuple[TokenShard, int, int, int]]:
        """Shards that hold [start, stop): the shard, the range inside it, and where the shard begins."""
        if not 0 <= start < stop <= self.num_tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.num_tokens}")
        number = int(np.searchsorted(self.offsets, start, side="right")) - 1
        while start < stop:
            offset, end = int(self.offsets[number]), int(self.offsets[number + 1])
            if end > start:
                yield self.shard(number), start - offset, min(stop, end) - offset, offset
                start = min(stop, end)
            number += 1

    def __getstate__(self) -> dict[str, Any]:
        """Without the headers: a loader worker reads its own."""
        return {**vars(self), "_known": OrderedDict()}


@dataclass(frozen=True)
class TokenCorpus:
    """A tokenized corpus: what ``corpus.json`` says.  Its shards are opened when they are read."""

    folder: Path
    content: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> TokenCorpus:
        """Read the index; no shard is touched.

        Raises:
            FoundryError: no corpus here, or its index is not as it was written.
        """
        path = Path(folder) / CORPUS_NAME
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["corpus"] != VERSION:
                raise ValueError(f"version {content['corpus']}, expected {VERSION}")
            check = content.pop("check")
            if check != _check(content):
                raise ValueError("it was changed since it was written")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FoundryError(
                f"{folder}: no tokenized corpus here ({CORPUS_NAME} is missing); tokenize was not finished"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise FoundryError(f"{path}: not a corpus index ({' '.join(str(error).split())})") from error
        return cls(Path(folder), content)

    @property
    def fingerprint(self) -> str:
        """Changes when any token of any shard does."""
        return _check(self.content)[:16]

    @property
    def tokenizer_folder(self) -> Path:
        """Where AutoTokenizer loads from."""
        return self.folder / TOKENIZER_FOLDER

    @property
    def splits(self) -> list[str]:
        return sorted(self.content["splits"])

    def split(self, name: str) -> CorpusSplit:
        """The tokens of one split.

        Raises:
            FoundryError: there is no such split.
        """
        if name not in self.content["splits"]:
            raise FoundryError(f"{self.folder}: has no split {name}; it has {', '.join(self.splits)}")
        columns = self.content["splits"][name]
        rows = zip(*(columns[key] for key in ShardEntry.__dataclass_fields__), strict=True)
        return CorpusSplit(self.folder, name, [ShardEntry(*row) for row in rows])


def write_corpus(
    folder: Path, splits: dict[str, list[tuple[str, ShardHeader]]], facts: dict[str, Any]
) -> None:
    """Write the index of a folder whose shards are all there.

    Args:
        splits: for each split the path (relative to ``folder``) and header of each shard, in order.
        facts: what else to keep: settings, manifest, counts.

    Raises:
        FoundryError: two shards were made with different tokenizers.
    """
    headers = [header for shards in splits.values() for _, header in shards]
    kinds = {(header.tokenizer_sha256, header.vocab_size, header.eos_token_id) for header in headers}
    if len(kinds) != 1:
        raise FoundryError(f"{folder}: its shards were made with {len(kinds)} tokenizers, expected one")
    tokenizer_sha256, vocab_size, eos_token_id = kinds.pop()
    found = sha256_of_file(folder / TOKENIZER_FOLDER / "tokenizer.json")
    if found != tokenizer_sha256:
        raise FoundryError(f"{folder / TOKENIZER_FOLDER}: not the tokenizer that the shards were made with")
    content = {
        "corpus": VERSION, "tokenizer_sha256": tokenizer_sha256, "vocab_size": vocab_size,
        "eos_token_id": eos_token_id,
        "splits": {
            name: {
                "path": [path for path, _ in shards],
                "num_tokens": [header.num_tokens for _, header in shards],
                "num_documents": [header.num_documents for _, header in shards],
                "tokens_sha256": [header.tokens_sha256 for _, header in shards],
            }
            for name, shards in splits.items()
        },
        **facts,
    }  # fmt: skip
    write_atomically(
        folder / CORPUS_NAME, json.dumps({**content, "check": _check(content)}, ensure_ascii=False)
    )


def _check(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
