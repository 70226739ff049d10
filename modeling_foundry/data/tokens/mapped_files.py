"""Files mapped into memory, with one limit for all readers of a process: a map holds its file open."""

from __future__ import annotations

import resource
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...settings import FoundryError

MOST_MAPPED_FILES = 400
# For all else that a run opens: libraries, pipes to the loader's workers, sockets between ranks, checkpoints.
FEWEST_OTHER_FILES = 100


def max_open_files() -> int:
    """The soft limit on open files of this process (``ulimit -n``)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if limit == resource.RLIM_INFINITY else limit


def num_mapped_files() -> int:
    """How many files may stay mapped: at most half of what the process may open."""
    return max(1, min(MOST_MAPPED_FILES, max_open_files() // 2))


def check_open_files(num_files: int = 0) -> None:
    """Raise FoundryError where this process may not open so many files and the few that all else takes."""
    needed = FEWEST_OTHER_FILES + num_files
    if max_open_files() < needed:
        raise FoundryError(
            f"open files: this process may open {max_open_files()}, expected at least {needed}; "
            "raise the limit with ulimit -n 1024"
        )


def read_map(path: Path, dtype: np.dtype) -> NDArray[np.unsignedinteger]:
    """A file as a read-only array, shape (items,), for as long as the array lives."""
    return np.memmap(path, dtype=dtype.newbyteorder("<"), mode="r")


@lru_cache(maxsize=num_mapped_files())
def kept_map(path: Path, dtype: np.dtype, sha256: str) -> NDArray[np.unsignedinteger]:
    """As :func:`read_map`, kept for the next who asks; the least recently used gives way.

    Args:
        sha256: of the content, so that a file that was replaced is mapped anew.
    """
    return read_map(path, dtype)
