"""What killed starts left in a run folder goes at the next start: a hundred kills cost no more disk than one."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .checkpoints import SEAL_NAME, checkpoint_folders, remove_checkpoint, step_of

TORN_PREFIX = "torn-"
# Of files.write_atomically, and the folders that are renamed into place when they are whole.
UNFINISHED = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp|\.(model|initial_model|checkpoint-\d+)\.tmp")
logger = logging.getLogger(__name__)


def remove_left_overs(output_dir: Path, whole: Path | None) -> str:
    """Remove torn checkpoints but the newest, what retention had removed by half, and unfinished files.

    Only who holds the folder may call it (run_lock).  What cannot be removed is named and stays.

    Args:
        whole: the checkpoint that the run goes on from; None when it starts anew.

    Returns:
        What was removed, in words; "" where nothing was.
    """
    torn = torn_checkpoints(output_dir)
    removed, freed_bytes = [], 0
    for path in [*torn[1:], *_half_gone(output_dir, whole), *_unfinished(output_dir)]:
        size = _bytes_of(path)
        try:
            _remove(path)
        except OSError as error:
            logger.warning("%s: a left-over that cannot be removed (%s)", path, error.strerror)
            continue
        removed.append(path.name)
        freed_bytes += size
    if not removed:
        return ""
    names = ", ".join(removed[:3]) + (f" and {len(removed) - 3} more" if len(removed) > 3 else "")
    kept = f"; {torn[0].name} stays for a look" if torn else ""
    return f"removed what killed starts had left ({names}; {freed_bytes:,} bytes){kept}"


def torn_checkpoints(output_dir: Path) -> list[Path]:
    """Checkpoints that were set aside, the one written last first."""
    found = [path for path in output_dir.glob(f"{TORN_PREFIX}checkpoint-*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def _half_gone(output_dir: Path, whole: Path | None) -> Iterator[Path]:
    """Older than the whole one and without a seal: retention takes that first."""
    for folder in checkpoint_folders(output_dir):
        if whole is not None and step_of(folder) < step_of(whole) and not (folder / SEAL_NAME).is_file():
            yield folder


def _unfinished(output_dir: Path) -> Iterator[Path]:
    return (path for path in output_dir.glob(".*.tmp") if UNFINISHED.fullmatch(path.name))


def _remove(path: Path) -> None:
    if path.name.startswith((TORN_PREFIX, "checkpoint-")):
        remove_checkpoint(path)
    elif path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _bytes_of(path: Path) -> int:
    """Of what a removal frees: a link frees nothing."""
    if path.is_symlink():
        return 0
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.lstat().st_size for file in files if file.is_file())
