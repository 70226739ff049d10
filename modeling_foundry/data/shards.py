"""Token shards: datatrove's layout with a header of ours beside it.

``NAME.ds`` holds raw little-endian ids (uint16 where the vocabulary allows it, else uint32), ``NAME.ds.index``
one uint64 per document: its end, in tokens.  ``NAME.ds.json`` says what the bytes mean and their SHA-256.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import sha256_of_file, sync_folder, write_atomically
from ..settings import FoundryError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class ShardHeader:
    """What ``NAME.ds.json`` says about a shard."""

    version: int
    dtype: str
    vocab_size: int
    eos_token_id: int
    tokenizer_sha256: str
    num_documents: int
    num_tokens: int
    tokens_sha256: str
    index_sha256: str


def token_dtype(vocab_size: int) -> np.dtype:
    """Smallest of uint16 and uint32 that holds every id; 151,669 ids do not fit 16 bits."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def write_shard(
    path: str | Path,
    documents: Iterable[list[int]],
    vocab_size: int,
    eos_token_id: int,
    tokenizer_sha256: str,
) -> ShardHeader:
    """Write documents, each followed by the end-of-sequence id; header last, so a torn shard has none.

    Raises:
        FoundryError: an id outside the vocabulary.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype, ends, num_tokens = token_dtype(vocab_size), [], 0
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        for number, ids in enumerate(documents):
            array = np.asarray([*ids, eos_token_id], dtype=np.int64)
            if array.min() < 0 or array.max() >= vocab_size:
                raise FoundryError(
                    f"{path}: document {number} holds id {array.max()}, outside a vocabulary of {vocab_size}"
                )
            file.write(array.astype(dtype).tobytes())
            num_tokens += len(array)
            ends.append(num_tokens)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    write_atomically(index_path(path), np.asarray(ends, dtype="<u8").tobytes())
    header = ShardHeader(
        version=FORMAT_VERSION, dtype=dtype.name, vocab_size=vocab_size, eos_token_id=eos_token_id,
        tokenizer_sha256=tokenizer_sha256, num_documents=len(ends), num_tokens=num_tokens,
        tokens_sha256=sha256_of_file(path), index_sha256=sha256_of_file(index_path(path)),
    )  # fmt: skip
    write_atomically(header_path(path), json.dumps(asdict(header), indent=1) + "\n")
    sync_folder(path.parent)
    return header


def index_path(path: str | Path) -> Path:
    return Path(f"{path}.index")


def header_path(path: str | Path) -> Path:
    return Path(f"{path}.json")


@dataclass(frozen=True)
class TokenShard:
    """A shard opened for reading; the ids stay on disk and are mapped."""

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
        return np.memmap(self.path, dtype=np.dtype(self.header.dtype).newbyteorder("<"), mode="r")

    def document_ends(self) -> NDArray[np.uint64]:
        """End of each document in tokens, shape (num_documents,)."""
        if self.header.num_documents == 0:
            return np.empty(0, dtype=np.uint64)
        return np.memmap(index_path(self.path), dtype="<u8", mode="r")

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
        for field in fields(header):
            value, kind = getattr(header, field.name), {"int": int, "str": str}[str(field.type)]
            if type(value) is not kind:
                raise ValueError(f"{field.name}: {value!r}")
    except FileNotFoundError as error:
        raise FoundryError(f"{path}: missing; the shard was not finished, prepare the data again") from error
    except (ValueError, TypeError) as error:
        raise FoundryError(f"{path}: not a shard header ({' '.join(str(error).split())})") from error
    if header.version != FORMAT_VERSION or header.dtype not in ("uint16", "uint32"):
        raise FoundryError(f"{path}: version {header.version}, dtype {header.dtype} cannot be read here")
    if np.dtype(header.dtype) != token_dtype(header.vocab_size):
        raise FoundryError(f"{path}: dtype {header.dtype} does not fit a vocabulary of {header.vocab_size}")
    return header
