"""One run at a time in a run folder: a second start would set aside the checkpoint that the first one is writing."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...settings import FoundryError

LOCK_NAME = "run.lock"
SECONDS_TO_WAIT = 60.0  # what a run whose launcher was killed may need to save its step
logger = logging.getLogger(__name__)


@contextmanager
def folder_held(arguments: Any) -> Iterator[None]:
    """Hold ``arguments.output_dir`` while rank 0 lives; the kernel lets go of it however the process ends.

    A run that is just ending is waited for, since the same command often comes at once.

    Raises:
        FoundryError: another process holds it and goes on, or it cannot be written to.
    """
    if arguments.process_index != 0:
        yield
        return
    path = Path(arguments.output_dir) / LOCK_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  (closed below)
    except OSError as error:
        raise FoundryError(
            f"output_dir: {path.parent} cannot be written to ({error.strerror}); give a folder that can"
        ) from error
    with file:
        _lock(file, path)
        yield


def _lock(file: Any, path: Path) -> None:
    """Not flock: a data loader's workers would inherit that, and NFS knows this kind."""
    until = time.monotonic() + SECONDS_TO_WAIT
    is_told = False
    while not _is_locked(file, path):
        holder = _holder(file)
        if time.monotonic() > until:
            raise FoundryError(
                f"output_dir: {path.parent} is in use by {holder}; wait for its end, or give another --output_dir"
            )
        if not is_told:
            words = f"{path.parent} is in use by {holder}; waiting up to {SECONDS_TO_WAIT:.0f} s for its end"
            print(words, file=sys.stderr, flush=True)
        is_told = True
        time.sleep(0.2)
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def _is_locked(file: Any, path: Path) -> bool:
    """Whether the lock is ours now, or there is none to be had on this file system."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        logger.warning(
            "%s: no lock on this file system (%s); start one run at a time here", path, error.strerror
        )
    return True


def _holder(file: Any) -> str:
    file.seek(0)
    return file.read().strip() or "another process"
