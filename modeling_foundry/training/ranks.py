"""What all ranks of a run do together: wait for each other, and leave."""

from __future__ import annotations

import atexit

import torch


def are_several() -> bool:
    """Whether this process belongs to a process group."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def wait_for_all_ranks() -> None:
    """Return when every rank is here; at once where there is one."""
    if are_several():
        torch.distributed.barrier()


def leave_at_exit() -> None:
    """End the process group when this process exits, before Python is taken down.

    Only where all ranks end alike: it waits for what is under way.  Left to the end of Python, a thread of gloo that
    lets go of its last tensor then aborts the process, and the launcher sees signal 6 in place of the exit code.
    """
    atexit.register(_leave)


def _leave() -> None:
    if are_several():
        torch.distributed.destroy_process_group()
