"""What all ranks of a run do together: wait for each other, and leave."""

from __future__ import annotations

import atexit

import torch

from ...settings import skip_teardown


def are_several() -> bool:
    """Whether this process belongs to a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def wait_for_all_ranks() -> None:
    """Return when every rank is here; at once where there is one."""
    if are_several():
        torch.distributed.barrier()


def leave_at_exit() -> None:
    """End the process group when this process exits, and then the process, before Python is taken down.

    Only where all ranks end alike: it waits for what is under way.  Left to the end of Python, the threads of a process
    group aborted one run in some thirty.
    """
    if are_several():
        atexit.register(_leave)
        skip_teardown()


def _leave() -> None:
    if are_several():
        torch.distributed.destroy_process_group()
