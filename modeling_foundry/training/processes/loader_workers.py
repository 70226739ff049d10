"""Workers of a data loader leave the signals that end a run to their rank.

torchrun signals a rank's whole process group, SLURM every process of a job.  PyTorch lets a worker die of SIGTERM and
then raises in its rank, wherever that is: in the step that it wanted to finish, or in the save.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from .endings import SIGNALS


def leave_signals_to_the_rank(loader: Any) -> Any:
    """``loader`` (a DataLoader, or accelerate's around one) with workers that only their own process ends."""
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: there a worker dies as before
        inner = getattr(loader, "base_dataloader", loader)
        if getattr(inner.worker_init_fn, "func", None) is not _begin:  # Trainer keeps some loaders
            inner.worker_init_fn = partial(_begin, inner.worker_init_fn)
    return loader


def _begin(then: Callable[[int], None] | None, worker_id: int) -> None:
    """First thing in a worker; in a thread, since PyTorch's own handler would end it in C."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    threading.Thread(target=_end_with_the_rank, args=(os.getppid(),), name="signals", daemon=True).start()
    if then is not None:
        then(worker_id)


def _end_with_the_rank(rank: int) -> None:
    while signal.sigwaitinfo(SIGNALS).si_pid != rank:
        pass
    os._exit(0)  # multiprocessing's terminate(), when the rank leaves
