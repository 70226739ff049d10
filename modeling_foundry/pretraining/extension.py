"""A longer run from the stable part of a shorter one: what warmup_stable_decay is for.

The learning rate of that schedule is constant until the decay begins, so the checkpoint of that step is one of any
longer run too (Hu et al. 2024, arXiv:2404.06395, section 4).  The longer run has a folder of its own and begins with
a copy of that checkpoint; the shorter one stays finished.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..data.sequences.sample_order import ORDER_NAME
from ..files import settle
from ..run_record import RECORD_NAME
from ..settings import FoundryError
from ..training.checkpoints.checkpoints import CHECKPOINT_PATTERN, fault, sealed_checkpoints
from ..training.log.run_log import LOG_NAME
from ..training.plan import RunPlan
from ..training.session import TrainingSession

# What a longer run may have otherwise; where the decay begins is checked by its step.
LENGTHS = {"max_steps", "max_tokens", "decay_tokens", "num_decay_steps", "extend_run"}


def extend(session: TrainingSession, plan: RunPlan) -> None:
    """Copy the last stable checkpoint of ``extend_run`` into the session's folder, once.

    Raises:
        FoundryError: no such run, other settings than its length, or no whole checkpoint of its stable part.
    """
    source, target = Path(plan.arguments.extend_run), session.output_dir
    if (target / RECORD_NAME).is_file() or any(target.glob("checkpoint-*")):
        return  # it has begun already
    start = plan.last_stable_step
    if start is None:
        raise FoundryError(
            "extend_run: only a run with lr_scheduler_type: warmup_stable_decay can be extended"
        )
    record = _record_of(source)
    if difference := session.difference_from(record, LENGTHS, source):
        raise FoundryError(f"extend_run: {source} was trained with other settings ({difference})")
    checkpoint = _stable_checkpoint(source, min(start, _stable_steps(record, source)))
    target.mkdir(parents=True, exist_ok=True)
    temporary = target / f".{checkpoint.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(checkpoint, temporary)
    settle(temporary)
    for name in (LOG_NAME, ORDER_NAME):  # lines after the checkpoint go when it resumes
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    os.rename(temporary, target / checkpoint.name)


def _record_of(source: Path) -> dict[str, Any]:
    try:
        return json.loads((source / RECORD_NAME).read_text())
    except (OSError, ValueError) as error:
        raise FoundryError(f"extend_run: {source} holds no run of ours ({RECORD_NAME})") from error


def _stable_steps(record: dict[str, Any], source: Path) -> int:
    training = record["settings"]["training"]
    try:
        return training["max_steps"] - training["lr_scheduler_kwargs"]["num_decay_steps"]
    except (KeyError, TypeError) as error:
        raise FoundryError(f"extend_run: {source} has no warmup_stable_decay schedule") from error


def _stable_checkpoint(source: Path, last_step: int) -> Path:
    for folder in sealed_checkpoints(source):  # newest first
        match = CHECKPOINT_PATTERN.fullmatch(folder.name)
        if match and int(match.group(1)) <= last_step and fault(folder) is None:
            return folder
    raise FoundryError(f"extend_run: {source} holds no whole checkpoint up to step {last_step:,}")
