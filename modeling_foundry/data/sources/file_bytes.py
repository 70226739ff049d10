"""Files opened by their address, and which bytes they had when they were read.

They are hashed on the way, so that no file is read twice to know it.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import IO, Any

import fsspec

BLOCK_BYTES = 1 << 22
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


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


def is_url(address: str) -> bool:
    """Whether fsspec is asked for it.  All else is a path, whatever ``::`` or ``*`` may mean to fsspec."""
    return URL.match(address) is not None


def open_file(root: str, path: str) -> IO[bytes]:
    """A file under a folder or URL, for reading.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_url(root):
        return open(Path(root, path), "rb")
    system, base = fsspec.url_to_fs(root)  # of the root alone: a name may hold what chains URLs
    stream: Any = system.open(address_of(base, path), "rb")
    return stream


def open_address(address: str) -> IO[bytes]:
    """A file by its path or URL, for reading; raises as :func:`open_file` does."""
    folder, _, name = address.rpartition("/")
    return open_file(*(folder, name) if is_url(address) else ("", address))


def address_of(root: str, path: str) -> str:
    """Path or URL of a file under a folder or URL; ``memory://`` and ``/`` are roots too."""
    return f"{root}{path}" if root.endswith("/") else f"{root}/{path}"


def size_and_sha256_of(root: str, path: str) -> tuple[int, str]:
    """Bytes and SHA-256 of a file under a folder or URL."""
    seen = ReadBytes()
    with open_file(root, path) as stream:
        seen.of(stream).read_rest()
    return seen.num_bytes, seen.sha256
