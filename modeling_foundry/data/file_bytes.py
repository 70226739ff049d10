"""Which bytes a file had when it was read: hashed on the way, so that no file is read twice to know it."""

from __future__ import annotations

import hashlib
from typing import IO

import fsspec

BLOCK_BYTES = 1 << 22


class ReadBytes:
    """A binary stream that notes what is read from it.

    Attributes:
        num_bytes: number of bytes read so far.
    """

    def __init__(self) -> None:
        self._digest, self.num_bytes = hashlib.sha256(), 0
        self._stream: IO[bytes] | None = None

    @property
    def sha256(self) -> str:
        """Of the bytes read so far."""
        return self._digest.hexdigest()

    def of(self, stream: IO[bytes]) -> ReadBytes:
        """Read from this stream from now on."""
        self._stream = stream
        return self

    def read(self, size: int = BLOCK_BYTES) -> bytes:
        """At most so many of the next bytes."""
        assert self._stream is not None
        block = self._stream.read(size)
        self._digest.update(block)
        self.num_bytes += len(block)
        return block

    def read_rest(self) -> None:
        """Note what nobody asked for: what lies behind a damage, for example."""
        while self.read():
            pass


def size_and_sha256_of(root: str, path: str) -> tuple[int, str]:
    """Bytes and SHA-256 of a file under a folder or URL."""
    seen = ReadBytes()
    with fsspec.open(f"{root.rstrip('/')}/{path}", "rb") as stream:
        seen.of(stream).read_rest()
    return seen.num_bytes, seen.sha256
