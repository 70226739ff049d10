"""Waiting for an event itself: no number of seconds here, since a busy machine takes any number of them.

What never comes is ended by pytest's own timeout, which is a net against hangs and bounds no test.
"""

import time
from collections.abc import Callable
from typing import Any, TypeVar

Answer = TypeVar("Answer")


def wait_for(condition: Callable[[], Answer], process: Any = None) -> Answer:
    """What ``condition`` says when it first says something true.

    Args:
        process: whose work is waited for; it must not end before.
    """
    while not (answer := condition()):
        has_ended = process is not None and process.poll() is not None
        if has_ended and not (answer := condition()):
            raise AssertionError(f"ended with {process.returncode} before it was there: {process.args}")
        if answer:
            break
        time.sleep(0.02)
    return answer


def process_lives(pid: int) -> bool:
    """Whether a process is there and has not ended, waited for or not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
