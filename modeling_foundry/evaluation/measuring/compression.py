"""What general-purpose compressors reach on the bytes the models are measured on."""

from __future__ import annotations

import gzip
import lzma
from dataclasses import dataclass


@dataclass(frozen=True)
class Compression:
    """Bits per byte of the documents put end to end; the compressors start knowing nothing."""

    num_bytes: int
    gzip_bits_per_byte: float
    xz_bits_per_byte: float


def compress(texts: list[str]) -> Compression:
    """``gzip -9`` and ``xz -9e`` on the UTF-8 bytes of all texts, concatenated.

    Raises:
        ValueError: there is not a byte to compress.
    """
    content = "".join(texts).encode()
    if not content:
        raise ValueError("nothing to compress")
    return Compression(
        num_bytes=len(content),
        gzip_bits_per_byte=8 * len(gzip.compress(content, compresslevel=9, mtime=0)) / len(content),
        xz_bits_per_byte=8 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) / len(content),
    )
