"""What a run will do, resolved once: batch, steps, schedule and precision, and where each of them came from.

A recipe may say a length in tokens, a batch may follow from the run that is gone on with, and libraries have defaults
of their own.  :class:`RunPlan` is what comes out of all that before anything is loaded.  It is frozen, the banner
prints it and ``run.json`` records it; ``plan.arguments`` are Trainer's, and nobody writes to them afterwards.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, TrainingArguments, get_scheduler

from ..settings import FoundryError
from .log.trackers import tracker_names
from .precision import precision_of
from .safety.update_guard import owes_evaluation


@dataclass(frozen=True)
class RunPlan:
    """The numbers of a run.

    Args:
        arguments: Trainer's, settled; read only from here on.
        max_steps: optimizer steps; None where the run is counted in epochs.
        warmup_steps: None where it is a share of steps that are not known yet.
        precision: mixed precision, ``no``, ``bf16`` or ``fp16``.
        sequence_length: tokens of each sequence; None where they differ.
        origins: number -> the key, or the run, that it follows from; the recipe's own where it is not named.
    """

    arguments: Any = field(repr=False)
    micro_batch: int
    accumulation: int
    num_ranks: int
    max_steps: int | None
    num_epochs: float | None
    schedule: str
    schedule_options: Mapping[str, Any]
    warmup_steps: int | None
    precision: str
    sequence_length: int | None = None
    origins: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples_per_step(self) -> int:
        """Micro-batch x accumulation x ranks."""
        return self.micro_batch * self.accumulation * self.num_ranks

    @property
    def tokens_per_step(self) -> int | None:
        """The same in tokens; None where sequences differ in length."""
        return None if self.sequence_length is None else self.samples_per_step * self.sequence_length

    @property
    def last_stable_step(self) -> int | None:
        """The last step before the decay of a warmup_stable_decay schedule; None of any other schedule."""
        if self.schedule != SchedulerType.WARMUP_STABLE_DECAY.value or self.max_steps is None:
            return None
        return self.max_steps - self.schedule_options.get("num_decay_steps", 0)

    def record(self) -> dict[str, Any]:
        """For ``run.json``: every number, and where it came from."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "arguments"}

    def arguments_from(self, checkpoint: Path | None) -> Any:
        """Trainer's arguments for a start from ``checkpoint``, or from the beginning.

        The log has the evaluation at the start already; only one that a signal put off is made then.
        """
        arguments = copy.copy(self.arguments)
        if checkpoint is not None:
            arguments.eval_on_start = owes_evaluation(checkpoint)
        return arguments


def plan_of(
    arguments: TrainingArguments,
    changes: Mapping[str, Any] | None = None,
    origins: Mapping[str, str] | None = None,
    sequence_length: int | None = None,
) -> RunPlan:
    """The plan of a run: a copy of its arguments, settled, and its numbers.

    Args:
        changes: arguments that follow from something else than themselves.
        origins: what these follow from.
    """
    settled: Any = copy.copy(arguments)
    # Checkpoints are kept and completed by DurableCheckpoints, without Trainer's pickles.
    fixed = {"save_total_limit": None, "save_only_model": True, **tracker_names(arguments)}
    for name, value in {**fixed, **(changes or {})}.items():
        setattr(settled, name, value)
    in_steps = settled.max_steps > 0
    warmup = settled.get_warmup_steps(settled.max_steps) if in_steps or settled.warmup_steps >= 1 else None
    return RunPlan(
        arguments=settled,
        micro_batch=settled.train_batch_size,
        accumulation=settled.gradient_accumulation_steps,
        num_ranks=settled.world_size,
        max_steps=settled.max_steps if in_steps else None,
        num_epochs=None if in_steps else settled.num_train_epochs,
        schedule=SchedulerType(settled.lr_scheduler_type).value,
        schedule_options=dict(settled.lr_scheduler_kwargs or {}),
        warmup_steps=warmup,
        precision=precision_of(settled),
        sequence_length=sequence_length,
        origins=dict(origins or {}),
    )


def check_schedule(plan: RunPlan) -> None:
    """Build the schedule once on a throw-away optimizer: what it refuses is said before anything is loaded.

    Raises:
        FoundryError: ``lr_scheduler_kwargs`` or a warm-up that the schedule does not take.
    """
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    options = dict(plan.schedule_options)
    try:
        get_scheduler(plan.schedule, optimizer, plan.warmup_steps or 0, plan.max_steps or 1, options)
    except (TypeError, ValueError) as error:
        raise FoundryError(
            f"lr_scheduler_kwargs: {options} does not suit {plan.schedule} ({' '.join(str(error).split())})"
        ) from error
    start = plan.last_stable_step
    if start is not None and start < (plan.warmup_steps or 0):
        raise FoundryError(
            f"lr_scheduler_type: warmup_stable_decay: {plan.warmup_steps:,} steps of warm-up and "
            f"{options['num_decay_steps']:,} of decay are more than max_steps {plan.max_steps:,}"
        )
