"""Where datatrove runs a pipeline: processes of this machine, SLURM or Ray."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...settings import FoundryError

if TYPE_CHECKING:  # a machine that only trains has no datatrove
    from datatrove.pipeline.base import PipelineStep

# A SLURM array has often no more places, and a folder with a log a file gets slow.
MAX_TASKS = 1000
# On this machine: enough that no worker waits long for the last one; each costs a fifth of a second to start.
TASKS_A_WORKER = 4


def num_workers(workers: int) -> int:
    """-1 is one a core that this process may use."""
    return len(os.sched_getaffinity(0)) if workers == -1 else workers


def number_of_tasks(num_files: int, num_tasks: int | None = None) -> int:
    """As many as asked for, never more than files."""
    return min(num_files, num_tasks or MAX_TASKS)


def number_of_local_tasks(num_files: int, workers: int, num_tasks: int | None = None) -> int:
    """As many as asked for, else some for each worker; never more than files."""
    return number_of_tasks(num_files, num_tasks or min(MAX_TASKS, TASKS_A_WORKER * num_workers(workers)))


def run_on_this_machine(steps: Sequence[PipelineStep], tasks: int, workers: int, logs: Path) -> None:
    """Run and wait; what is finished is for the steps to know, so no task is skipped by datatrove."""
    from .local_folder import LocalFolder
    from .stages import QuietExecutor, quiet

    with quiet():
        QuietExecutor(
            pipeline=list(steps), tasks=tasks, workers=min(num_workers(workers), tasks),
            logging_dir=LocalFolder(logs), skip_completed=False,
        ).run()  # fmt: skip


def run_on_ray(steps: Sequence[PipelineStep], tasks: int, workers: int, logs: Path) -> None:
    """Run on the Ray cluster that ``RAY_ADDRESS`` names (or one of this machine) and wait.

    Raises:
        FoundryError: Ray is not installed.
    """
    try:
        from datatrove.executor.ray import RayPipelineExecutor

        executor = RayPipelineExecutor(
            pipeline=list(steps), tasks=tasks, workers=workers, logging_dir=str(logs), skip_completed=False
        )
    except ImportError as error:
        raise FoundryError(
            "executor: ray is not installed; pip install 'modeling-foundry[data-ray]'"
        ) from error
    executor.run()


def submit_to_slurm(
    steps: Sequence[PipelineStep], tasks: int, options: dict[str, Any], logs: Path, name: str
) -> str:
    """Submit one job array and return its number at once.

    Args:
        options: keywords of datatrove's SlurmPipelineExecutor (partition, time, cpus_per_task, venv_path, ...).

    Raises:
        FoundryError: an option it does not know, or ``sbatch`` fails.
    """
    import subprocess

    from datatrove.executor import SlurmPipelineExecutor

    try:
        executor = SlurmPipelineExecutor(
            pipeline=list(steps), tasks=tasks, logging_dir=str(logs), skip_completed=False, job_name=name,
            **options,
        )  # fmt: skip
    except TypeError as error:
        raise FoundryError(f"slurm: {' '.join(str(error).split())}") from error
    try:
        executor.run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise FoundryError(f"slurm: sbatch failed ({error})") from error
    return str(executor.job_id)
