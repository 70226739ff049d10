"""Notices a worker that was ended from outside, as the kernel does when memory runs out.

Python's pool starts another in its place and waits for ever for the task that went with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from ...settings import FoundryError

CHECK_SECONDS = 1.0
SECONDS_TO_END = 10.0


@contextlib.contextmanager
def task_noted(folder: str | Path, rank: int) -> Iterator[None]:
    """In a worker: note in ``folder``, while a task runs, which process runs it."""
    note = Path(folder, str(rank))
    note.write_text(str(os.getpid()))
    yield  # no finally: a worker that ends in any other way than by an exception leaves its note
    note.unlink()


@contextlib.contextmanager
def lost_workers_noticed(folder: str | Path) -> Iterator[None]:
    """In the main thread of the process that waits for the tasks noted in ``folder``.

    Raises:
        FoundryError: a process ended without ending its task.
    """
    done, lost = threading.Event(), list[int]()

    def watch() -> None:
        while not done.wait(CHECK_SECONDS):
            lost[:] = _ended(folder)
            # Asked twice: when a task fails, the pool ends the others' processes itself and run() returns.
            while lost and not done.wait(CHECK_SECONDS):
                signal.pthread_kill(waiting, signal.SIGINT)
                if done.wait(
                    SECONDS_TO_END
                ):  # else once more: ending a pool can wait for the lost worker, too
                    return

    def interrupted(number: int, frame: FrameType | None) -> None:
        if lost:
            raise FoundryError(
                f"worker process {lost[0]} was ended from outside (often by the kernel, when memory runs out); "
                "run the same command again, with fewer --workers if it was memory"
            )
        if callable(
            before
        ):  # not where a shell started us with SIGINT ignored, as it does behind nohup and &
            before(number, frame)
        elif before is signal.SIG_DFL:
            raise KeyboardInterrupt

    waiting = threading.get_ident()
    before = signal.signal(signal.SIGINT, interrupted)
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGINT, before)


def _ended(folder: str | Path) -> list[int]:
    """Processes that are noted and are no more."""
    ended = []
    for note in Path(folder).iterdir():
        with contextlib.suppress(FileNotFoundError, ValueError):  # ended just now; not written yet
            process = int(note.read_text())
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                if note.exists():
                    ended.append(process)
    return ended
