"""The process that launched this one: a rank must not outlive it unseen, with GPUs and run folder in its hands."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_TO_ASK = 5.0
ONE_PROCESS_LAUNCHERS = ("accelerate", "modeling_foundry.launch")
LAUNCHERS = ("accelerate", "torch", "deepspeed", "python")  # in a container a launcher can be process 1


def end_with_launcher() -> None:
    """Send this process SIGTERM when its launcher dies, however it dies; call it once, early.

    A launcher that is killed, or gets a signal that it does not pass on, leaves its ranks behind.  A rank that is
    training answers SIGTERM by saving its step.  Without a launcher nothing happens: a shell may end before its run.
    The kernel's own way (PR_SET_PDEATHSIG) is not taken: it also fires when a mere thread of the launcher ends.
    """
    parent = os.getppid()
    if is_launched(parent):
        threading.Thread(target=_await_death, args=(parent,), name="launcher", daemon=True).start()


def is_launched(parent: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ``parent`` is a launcher: torchrun's agent, or accelerate where it starts one process itself."""
    if "TORCHELASTIC_RUN_ID" in environment:
        return True
    command = _command_line(parent)
    return "ACCELERATE_MIXED_PRECISION" in environment and any(
        name in command for name in ONE_PROCESS_LAUNCHERS
    )


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""  # no /proc: not known


def is_adopted(parent: int) -> bool:
    """Whether ``parent`` is what takes in orphans: the launcher died while this process was still being loaded.

    Such a rank would look for the others for half an hour, and could meet those of the next start at the same port.
    """
    command = _command_line(parent)
    takes_orphans = parent == 1 or "systemd" in command
    is_launcher = any(word in command for word in LAUNCHERS) or sys.argv[0] in command.split("\0")
    return takes_orphans and not is_launcher


def is_first_to_say(words: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether no other rank of this start has said the same: bad input is found by all of them at once.

    Ranks ask the store by which torchrun's agents found each other, so it holds over all nodes.  Where there is none,
    or it does not answer, every rank speaks for itself.
    """
    if environment.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True
    from torch.distributed import DistError, TCPStore  # only here: a planner needs no torch

    said = hashlib.sha256(words.encode()).hexdigest()[:16]
    try:
        store = TCPStore(
            environment["MASTER_ADDR"], int(environment["MASTER_PORT"]), is_master=False,
            timeout=timedelta(seconds=SECONDS_TO_ASK), wait_for_workers=False,
        )  # fmt: skip
        return bool(store.add(f"said/{environment.get('TORCHELASTIC_RESTART_COUNT', 0)}/{said}", 1) == 1)
    except (DistError, KeyError, ValueError, RuntimeError):
        return True


def _await_death(parent: int) -> None:
    while os.getppid() == parent and not is_adopted(parent):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signal.SIGTERM)
