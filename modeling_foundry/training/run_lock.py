"""One run at a time in a run folder: a second start would set aside the checkpoint that the first one is writing."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..settings import FoundryError

LOCK_NAME = "run.lock"
logger = logging.getLogger(__name__)


@contextmanager
def folder_held(arguments: Any) -> Iterator[None]:
    """Hold ``arguments.output_dir`` while rank 0 lives; the kernel lets go of it however the process ends.

    Raises:
        FoundryError: another process holds it, or it cannot be written to.
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
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            logger.warning(
                "%s: no lock on this file system (%s); start one run at a time here", path, error.strerror
            )
            return
        file.seek(0)
        raise FoundryError(
            f"output_dir: {path.parent} is in use by {file.read().strip() or 'another process'}; wait for its end, "
            "or give another --output_dir"
        ) from error
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
