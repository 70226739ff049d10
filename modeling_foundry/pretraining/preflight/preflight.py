"""Checks between "everything is built" and the first step: what would fail hours later fails now."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from accelerate.utils import gather_object
from transformers import Trainer

from ...data.sequences.training_data import TrainingData
from ...settings import FoundryError, setting
from ...training.processes.ranks import leave_at_exit, wait_for_all_ranks
from ..model_settings import ModelSettings
from .checks import (
    Finding,
    check_disk,
    check_dtype,
    check_folder,
    check_memory,
    check_model,
    check_rows,
    check_tokenizer,
)
from .forecast import RunForecast


@dataclass
class PreflightKeys:
    """Keys of the checks, mixed into a recipe's training arguments."""

    preflight_only: bool = setting("check everything before the first step, then stop", False, neutral=True)
    preflight_memory: Literal["refuse", "warn"] = setting(
        "what to do when the forecast memory is not free on the card", "refuse", neutral=True
    )


class PreflightError(FoundryError):
    """Every failing check, one line each."""


Check = Callable[[], str | Finding]


def preflight(
    trainer: Trainer, prepared: TrainingData, settings: ModelSettings, forecast: RunForecast, launch: Check
) -> list[Finding]:
    """Run every check on every rank.

    Args:
        launch: compares what accelerate set up with what was asked for.

    Returns:
        The findings of all ranks; those of the others where they differ from rank 0's.

    Raises:
        PreflightError: with all that failed, said by rank 0 already.
    """
    model, arguments = trainer.model, trainer.args
    checks: dict[str, Check] = {
        "launch": launch,
        "embedding rows": lambda: check_rows(model, trainer.processing_class, prepared),
        "parameter dtype": lambda: check_dtype(model, settings),
        "data": lambda: f"every hash verified, fingerprint {prepared.fingerprint}",  # or it would not be open
        "tokenizer": lambda: check_tokenizer(trainer.processing_class, model.config, prepared),
        "model": lambda: check_model(model, settings, forecast),
        "memory": lambda: check_memory(forecast, arguments.preflight_memory),
    }
    if trainer.is_world_process_zero():
        checks["disk space"] = lambda: check_disk(arguments, forecast)
        checks["output folder"] = lambda: check_folder(arguments.output_dir)
    found = [inspect(name, check) for name, check in checks.items()]
    everything = _of_all_ranks(found, arguments.process_index)
    faults = [each for each in everything if each.verdict == "failed"]
    if faults:
        raise said(faults, len(everything), trainer.is_world_process_zero())
    return everything


def inspect(name: str, check: Check) -> Finding:
    """One check's finding, whatever it finds."""
    try:
        answer = check()
    except FoundryError as error:
        return Finding(name, str(error), "failed")
    return answer if isinstance(answer, Finding) else Finding(name, answer)


def said(faults: list[Finding], num_checks: int, is_main: bool) -> PreflightError:
    """The error of all ranks, printed by rank 0."""
    lines = [f"preflight: {len(faults)} of {num_checks} checks failed; nothing was trained"]
    error = PreflightError("\n  ".join([*lines, *(fault.words for fault in faults)]))
    if is_main:
        print(f"error: {error}", file=sys.stderr, flush=True)
    error.is_said = True
    leave_at_exit()
    wait_for_all_ranks()  # a launcher kills the others as soon as one has ended
    return error


def _of_all_ranks(found: list[Finding], rank: int) -> list[Finding]:
    """Findings of rank 0, then the troubles of others that rank 0 does not have."""
    gathered = gather_object([(rank, found)])
    first = dict(gathered)[0]
    others = [
        Finding(each.check, f"rank {number}: {each.words}", each.verdict)
        for number, findings in gathered
        for each in findings
        if number > 0 and each.verdict in ("failed", "warning") and each not in first
    ]
    return [*first, *others]
