"""How a run can end before its last step, each way with an exit code of its own.

A launcher (torchrun, accelerate) answers 1 whatever its ranks answered, so the code and the reason also stand in
``stopped.json`` in the run folder.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from ...files import write_atomically
from ...run_record import masked
from ...settings import FoundryError

STOPPED_NAME = "stopped.json"
# SLURM and Kubernetes send SIGTERM; SIGUSR2 is what sbatch --signal can be told to send some time before.
SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class RunStoppedError(FoundryError):
    """The run cannot go on by itself; raised on every rank alike unless its docstring says otherwise."""

    exit_code = 1

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class UpdateRefusedError(RunStoppedError):
    """A loss (a held-out one too) or gradient not finite, or a spike, and the policy is to stop or is used up."""

    exit_code = 65  # EX_DATAERR


class RankLostError(RunStoppedError):
    """Another rank died or hangs; raised on the ranks that are left."""

    exit_code = 69  # EX_UNAVAILABLE


class PreemptedError(RunStoppedError):
    """SIGTERM or SIGUSR2: a checkpoint was saved, and the same command goes on from it."""

    exit_code = 75  # EX_TEMPFAIL: try again


class SaveFailedError(FoundryError, OSError):
    """The disk took no more of a checkpoint; raised on the rank that met it, the others are told by its heartbeat."""

    exit_code = 74  # EX_IOERR


def write_stopped(output_dir: Path, end: FoundryError, step: int) -> None:
    """Leave ``stopped.json``: exit_code, step (the last optimizer step that counts), reason."""
    content = {"exit_code": end.exit_code, "step": step, "reason": masked(str(end))}
    write_atomically(output_dir / STOPPED_NAME, json.dumps(content, indent=1) + "\n")


def say(output_dir: Path, end: RunStoppedError | SaveFailedError, step: int | None = None) -> None:
    """Write ``stopped.json`` and the one line on stderr that would otherwise come when the process ends.

    Before the ranks part: a launcher kills the others as soon as one has ended.  A full disk must not keep the run
    from ending: that the file could not be written is said too.
    """
    words = str(end)
    if isinstance(end, RunStoppedError):
        step = end.step
    try:
        write_stopped(output_dir, end, step or 0)
    except OSError as error:
        words += f" ({output_dir / STOPPED_NAME} could not be written: {error.strerror})"
    print(f"error: {words}", file=sys.stderr, flush=True)
    end.is_said = True
