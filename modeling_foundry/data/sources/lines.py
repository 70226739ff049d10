"""The lines of a file, packed or not, block by block."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from typing import IO, Any

import zstandard

from ...settings import FoundryError
from .file_bytes import ReadBytes
from .file_kinds import kind_by_bytes

BLOCK_BYTES = 1 << 20
# Of compressed bytes less at a time: what a damaged piece still held is lost with it.
PACKED_BLOCK_BYTES = 1 << 16
# What the readers of lines need of a stream.
Readable = IO[bytes] | ReadBytes
# Of `zstd --long=31`; unless told, a decoder takes 128 MiB for the most.
MAX_ZSTD_WINDOW_BYTES = 1 << 31
GZIP_WINDOW = 16 + zlib.MAX_WBITS


class DamagedFileError(FoundryError):
    """The bytes of a file end or break where they should go on, or are of another kind; what came before was read."""


def lines_of(stream: Readable, compression: str, name: str) -> Iterator[bytes]:
    """Lines of an open file, decompressed, without their newline.

    A byte order mark before the first line is not part of it.

    Raises:
        DamagedFileError: the stream breaks or ends inside a frame, or is something else than lines of UTF-8.
    """
    for number, line in enumerate(_split_lines(_as_text(blocks_of(stream, compression, name), name))):
        yield line if number else line.removeprefix(codecs.BOM_UTF8)


def _as_text(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The blocks, of which the first does not say that all is of another kind."""
    for number, block in enumerate(blocks):
        if number == 0 and (kind := kind_by_bytes(block)):
            raise DamagedFileError(f"{name}: is {kind}, expected UTF-8 text; convert or rename it")
        yield block


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Lines without their newline; a last line without one counts too."""
    parts: list[bytes] = []
    for block in blocks:
        first, *rest = block.split(b"\n")
        parts.append(first)
        if not rest:
            continue
        yield b"".join(parts)
        yield from rest[:-1]
        parts = [rest[-1]]
    if last := b"".join(parts):
        yield last


def blocks_of(stream: Readable, compression: str, name: str) -> Iterator[bytes]:
    """Decompressed bytes, piece by piece.

    Raises:
        DamagedFileError: the stream breaks or ends inside a frame.
    """
    try:
        if compression == "none":
            yield from iter(lambda: stream.read(BLOCK_BYTES), b"")
        else:
            yield from _unpacked(iter(lambda: stream.read(PACKED_BLOCK_BYTES), b""), compression, name)
    except (zstandard.ZstdError, zlib.error) as error:
        raise DamagedFileError(f"{name}: corrupt {compression} data ({error})") from error


def _check_beginning(block: bytes, compression: str, name: str) -> None:
    kind = kind_by_bytes(block)
    if kind != f"{compression} data" and (kind or block.lstrip()[:1] in (b"{", b"[")):
        raise DamagedFileError(
            f"{name}: corrupt {compression} data (it is {kind or 'plain JSON'}, whatever its name says)"
        )


def _unpacked(blocks: Iterator[bytes], compression: str, name: str) -> Iterator[bytes]:
    """Frames one after the other; zstandard's own stream reader takes a truncated frame for the end."""
    zstd = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
    open_frame: Any = None
    is_first = True
    for block in blocks:
        if is_first:
            _check_beginning(block, compression, name)
        while block:
            if open_frame is None:
                if compression == "gzip" and not is_first and not (block := block.lstrip(b"\0")):
                    break  # zeros after the last member fill up a tape's block
                is_first = False
                open_frame = (
                    zlib.decompressobj(GZIP_WINDOW) if compression == "gzip" else zstd.decompressobj()
                )
            if data := open_frame.decompress(block):
                yield data
            block = b""
            if open_frame.eof:
                block, open_frame = open_frame.unused_data, None
    if open_frame is not None:
        raise DamagedFileError(f"{name}: corrupt {compression} data (ends inside a frame)")
