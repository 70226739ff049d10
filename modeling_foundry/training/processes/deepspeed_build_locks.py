"""Locks of torch's extension builds that a killed process left: DeepSpeed would wait there for ever without a word.

torch's FileBaton makes a file ``lock`` and keeps it open while it builds, so on Linux ``/proc`` tells whether anybody
still does.  The half-built files stay: ninja makes anew what its log does not say is whole.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROCESSES = Path("/proc")
SECONDS_BETWEEN_LOOKS = 0.5  # FileBaton closes its file a moment before it removes it
SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "ceph", "beegfs", "glusterfs", "9p", "fuse")


def remove_stale_build_locks(deepspeed: object = None) -> None:
    """Remove the locks that no process has open, and say so; every rank calls it before it starts DeepSpeed.

    Args:
        deepspeed: ``TrainingArguments.deepspeed``; without it the launcher's environment tells who asked.
    """
    is_asked = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("true", "1")
    if not (is_asked or deepspeed) or sys.platform != "linux":
        return
    for lock in sorted(_locks()):
        with suppress(OSError), _folder_held(lock.parent):
            if not _is_abandoned(lock):
                continue
            if _is_shared(lock):
                if os.environ.get("LOCAL_RANK", "0") == "0":
                    _say(f"{lock}: nobody on this machine builds; remove it if no other machine does")
                continue
            lock.unlink()
            _say(f"{lock}: removed; the process that was building there was killed")


def _locks() -> Iterator[Path]:
    """Under the folder that torch itself would build in."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given is not None:
        return Path(given).glob("*/lock")
    from torch.utils.cpp_extension import get_default_build_root  # DeepSpeed will need it

    return Path(get_default_build_root()).glob("*/*/lock")


@contextmanager
def _folder_held(folder: Path) -> Iterator[None]:
    """One rank at a time: what the first one removed, the second must not take from whoever builds by then."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_abandoned(lock: Path) -> bool:
    """Whether it is one of ours and nobody has it open, at two looks."""
    first = lock.stat()
    if first.st_uid != os.geteuid() or _is_open(first):  # what others have open only they can see
        return False
    time.sleep(SECONDS_BETWEEN_LOOKS)
    second = lock.stat()
    return os.path.samestat(first, second) and not _is_open(second)


def _is_open(file: os.stat_result) -> bool:
    for descriptor in PROCESSES.glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it, or its process, has gone
            if os.readlink(descriptor).endswith("/lock") and os.path.samestat(descriptor.stat(), file):
                return True
    return False


def _is_shared(path: Path) -> bool:
    """Whether another machine may hold it: a network file system."""
    device = path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in (PROCESSES / "self/mountinfo").read_text().splitlines():
        mount, _, kind = line.partition(" - ")
        if mount.split()[2] == number:
            return kind.startswith(SHARED_FILE_SYSTEMS)
    return False


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
