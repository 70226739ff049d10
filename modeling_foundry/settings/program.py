"""A recipe from its start to its exit code."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from ..launcher import end_with_launcher, is_first_to_say
from .errors import FoundryError

_skips_teardown = threading.Event()


def skip_teardown() -> None:
    """Let :func:`run` end the process without taking Python down, after all that ``atexit`` knows has run.

    For a process whose libraries hold threads of their own: one that wants Python's lock while Python is taken down
    aborts the process, and whoever waits for it sees signal 6 in place of the exit code.
    """
    _skips_teardown.set()


def _end(code: int) -> NoReturn:
    if not _skips_teardown.is_set():
        sys.exit(code)
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a recipe: bad input is one line and exit code 2, an interrupt is exit code 130."""
    end_with_launcher()
    try:
        code = main() or 0
    except FoundryError as error:
        if not error.is_said:
            _say(f"error: {error}")
        code = error.exit_code
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on from the last checkpoint")
        code = 130
    _end(code)


def _say(words: str) -> None:
    """One line on stderr, by one rank of those that have the same to say."""
    if is_first_to_say(words):
        print(words, file=sys.stderr, flush=True)
