"""Token shards: datatrove's layout with a header of ours beside it.

``NAME.ds`` holds raw little-endian ids (uint16 where the vocabulary allows it, else uint32), ``NAME.ds.index``
one uint64 per document: its end, in tokens.  ``NAME.ds.json`` says what the bytes mean and their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...files import sha256_of_file, sync_folder, write_atomically
from ...settings import FoundryError
from .mapped_files import kept_map, read_map

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardHeader:
    """What ``NAME.ds.json`` says about a shard; ``source``: the file it was made from, and rows that gave nothing."""

    version: int
    dtype: str
    vocab_size: int
    eos_token_id: int
    tokenizer_sha256: str
    num_documents: int
    num_tokens: int
    tokens_sha256: str
    index_sha256: str
    source: dict[str, Any] = field(default_factory=dict)


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 that holds every id; 151,669 ids do not fit 16 bits."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def write_shard(
    path: str | Path,
    documents: Iterable[Sequence[int] | NDArray[np.unsignedinteger]],
    vocab_size: int,
    eos_token_id: int,
    tokenizer_sha256: str,
    source: Callable[[], dict[str, Any]] = dict,
) -> ShardHeader:
    """Write documents, each followed by the end-of-sequence id; header last, so a torn shard has none.

    Args:
        source: called after the last document; what the header shall say of where they came from.

    Raises:
        FoundryError: an id outside the vocabulary.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, ends, num_tokens, digest = token_dtype(vocab_size), [], 0, hashlib.sha256()
    # A name of its own: two tasks that make the same shard write the same bytes without meeting.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            for number, ids in enumerate(documents):
                data = _document_bytes(ids, eos_token_id, vocab_size, dtype, f"{path}: document {number}")
                digest.update(data)
                file.write(data)
                num_tokens += len(data) // dtype.itemsize
                ends.append(num_tokens)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    index = np.asarray(ends, dtype="<u8").tobytes()
    write_atomically(index_path(path), index)
    header = ShardHeader(
        version=FORMAT_VERSION, dtype=dtype.name, vocab_size=vocab_size, eos_token_id=eos_token_id,
        tokenizer_sha256=tokenizer_sha256, num_documents=len(ends), num_tokens=num_tokens,
        tokens_sha256=digest.hexdigest(), index_sha256=hashlib.sha256(index).hexdigest(), source=source(),
    )  # fmt: skip
    write_atomically(header_path(path), json.dumps(asdict(header), indent=1) + "\n")
    sync_folder(path.parent)
    return header


def _document_bytes(ids: Any, eos_token_id: int, vocab_size: int, dtype: np.dtype, name: str) -> bytes:
    array = np.empty(len(ids) + 1, dtype=np.int64)
    array[:-1], array[-1] = ids, eos_token_id
    if array.min() < 0 or array.max() >= vocab_size:
        raise FoundryError(f"{name} holds id {array.max()}, outside a vocabulary of {vocab_size}")
    return array.astype(dtype).tobytes()


def index_path(path: str | Path) -> Path:
    return Path(f"{path}.index")


def header_path(path: str | Path) -> Path:
    return Path(f"{path}.json")


@dataclass(frozen=True)
class TokenShard:
    """A shard opened for reading; the ids stay on disk and are mapped while they are read."""

    path: Path
    header: ShardHeader

    @classmethod
    def open(cls, path: str | Path) -> TokenShard:
        """Read the header and check sizes (not hashes: see :meth:`verify`).

        Raises:
            FoundryError: naming the file and its fault.
        """
        path = Path(path)
        header = _read_header(header_path(path))
        shard = cls(path, header)
        expected = {
            path: header.num_tokens * np.dtype(header.dtype).itemsize,
            index_path(path): header.num_documents * 8,
        }
        for file, size in expected.items():
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                raise FoundryError(
                    f"{file}: expected {size} bytes, found {'no file' if found is None else found}"
                )
        return shard

    def tokens(self) -> NDArray[np.unsignedinteger]:
        """All ids, shape (num_tokens,), memory-mapped and read-only."""
        if self.header.num_tokens == 0:
            return np.empty(0, dtype=self.header.dtype)
        return read_map(self.path, np.dtype(self.header.dtype))

    def document_ends(self) -> NDArray[np.uint64]:
        """End of each document in tokens, shape (num_documents,)."""
        if self.header.num_documents == 0:
            return np.empty(0, dtype=np.uint64)
        return read_map(index_path(self.path), np.dtype(np.uint64))

    @property
    def num_tokens(self) -> int:
        return self.header.num_tokens

    def read(self, start: int, stop: int) -> NDArray[np.unsignedinteger]:
        """The ids [start, stop), a view of the mapped file."""
        if self.header.num_tokens == 0:
            return self.tokens()
        return kept_map(self.path, np.dtype(self.header.dtype), self.header.tokens_sha256)[start:stop]

    def document_ends_in(self, start: int, stop: int) -> NDArray[np.int64]:
        """Ends e of documents with start < e < stop, ascending."""
        if self.header.num_documents == 0:
            return np.empty(0, dtype=np.int64)
        ends = kept_map(index_path(self.path), np.dtype(np.uint64), self.header.index_sha256)
        first, last = np.searchsorted(ends, np.array([start + 1, stop], dtype=np.uint64))
        return np.asarray(ends[first:last], dtype=np.int64)

    def verify(self) -> None:
        """Check hashes, ids and document ends against the header.

        Raises:
            FoundryError: naming the file and its fault.
        """
        for file, expected in (
            (self.path, self.header.tokens_sha256),
            (index_path(self.path), self.header.index_sha256),
        ):
            if sha256_of_file(file) != expected:
                raise FoundryError(f"{file}: does not match the SHA-256 in {header_path(self.path).name}")
        tokens, ends = self.tokens(), self.document_ends()
        if len(tokens) and int(tokens.max()) >= self.header.vocab_size:
            raise FoundryError(
                f"{self.path}: holds id {int(tokens.max())}, vocabulary is {self.header.vocab_size}"
            )
        lengths = np.diff(ends.astype(np.int64), prepend=0)
        if int(lengths.sum()) != len(tokens) or np.any(lengths <= 0):
            raise FoundryError(
                f"{index_path(self.path)}: its ends do not divide {len(tokens)} tokens into documents"
            )
        unfinished = np.flatnonzero(tokens[ends - np.uint64(1)] != self.header.eos_token_id)
        if len(unfinished):
            raise FoundryError(
                f"{self.path}: document {unfinished[0]} does not end with id {self.header.eos_token_id}"
            )


def _read_header(path: Path) -> ShardHeader:
    try:
        header = ShardHeader(**json.loads(path.read_text(encoding="utf-8")))
        for entry in fields(header):
            value, kind = getattr(header, entry.name), {"int": int, "str": str}.get(str(entry.type), dict)
            if type(value) is not kind:
                raise ValueError(f"{entry.name}: {value!r}")
    except FileNotFoundError as error:
        raise FoundryError(f"{path}: missing; the shard was not finished, prepare the data again") from error
    except (ValueError, TypeError) as error:
        raise FoundryError(f"{path}: not a shard header ({' '.join(str(error).split())})") from error
    if header.version != FORMAT_VERSION or header.dtype not in ("uint16", "uint32"):
        raise FoundryError(f"{path}: version {header.version}, dtype {header.dtype} cannot be read here")
    if np.dtype(header.dtype) != token_dtype(header.vocab_size):
        raise FoundryError(f"{path}: dtype {header.dtype} does not fit a vocabulary of {header.vocab_size}")
    return header
