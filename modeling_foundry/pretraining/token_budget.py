"""Lengths and batches said in tokens, turned into the steps that Trainer counts.

Tokens do not change with the number of GPUs; steps do.  A step reads micro-batch x accumulation x ranks x sequence
length tokens, and every length is rounded up to whole steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import SchedulerType, TrainingArguments

from ..settings import FoundryError, setting
from ..training.plan import RunPlan, check_schedule, plan_of

RUN_SO_FAR = "the run so far"


@dataclass
class TokenCounts:
    """Keys of a pretraining recipe that are counted in tokens."""

    max_tokens: int | None = setting("length of the run, in place of max_steps", None)
    warmup_tokens: int | None = setting("length of the warm-up, in place of warmup_steps", None)
    decay_tokens: int | None = setting("length of the decay of lr_scheduler_type warmup_stable_decay", None)
    global_batch_tokens: int | None = setting(
        "tokens of a step; gradient_accumulation_steps follows from it", None
    )


def resolve_plan(arguments: Any, sequence_length: int, accumulation: int | None = None) -> RunPlan:
    """The plan of a pretraining run: accumulation, steps, warm-up and decay from the token keys.

    Args:
        arguments: TrainingArguments with the fields of :class:`TokenCounts`; left as they are.
        accumulation: that of the run which is gone on with, where it is to be followed.

    Raises:
        FoundryError: a length is given twice, the batch does not divide, or the schedule is impossible.
    """
    changes: dict[str, Any] = {"ignore_data_skip": True}  # the dataset itself begins where the run was
    origins: dict[str, str] = {}
    if accumulation is not None and accumulation != arguments.gradient_accumulation_steps:
        changes["gradient_accumulation_steps"] = accumulation
        origins["accumulation"] = RUN_SO_FAR
    elif arguments.global_batch_tokens is not None:
        changes["gradient_accumulation_steps"] = _accumulation(arguments, sequence_length)
        origins["accumulation"] = "global_batch_tokens"
    step_tokens = (
        arguments.train_batch_size
        * changes.get("gradient_accumulation_steps", arguments.gradient_accumulation_steps)
        * arguments.world_size
        * sequence_length
    )
    for tokens_key, steps_key, not_given in (
        ("max_tokens", "max_steps", -1),
        ("warmup_tokens", "warmup_steps", 0),
    ):
        tokens = getattr(arguments, tokens_key)
        if tokens is not None:
            changes[steps_key] = steps = -(-tokens // step_tokens)
            origins[steps_key] = tokens_key
            _refuse_another(tokens_key, tokens, steps_key, getattr(arguments, steps_key), not_given, steps)
    if changes.get("max_steps", arguments.max_steps) == -1:
        raise FoundryError("max_steps: missing; give max_steps or max_tokens, or --config FILE of a recipe")
    changes["lr_scheduler_kwargs"] = _schedule_options(arguments, step_tokens)
    if arguments.decay_tokens is not None:
        origins["schedule_options"] = "decay_tokens"
    plan = plan_of(arguments, changes, origins, sequence_length)
    check_schedule(plan)
    return plan


def _accumulation(arguments: Any, sequence_length: int) -> int:
    tokens, num_ranks = arguments.global_batch_tokens, arguments.world_size
    smallest = arguments.train_batch_size * num_ranks * sequence_length
    if tokens % smallest:
        below = tokens // smallest * smallest
        near = f"{below:,} and {below + smallest:,}" if below else f"{smallest:,}, the smallest,"
        raise FoundryError(
            f"global_batch_tokens: {tokens:,} is no multiple of {smallest:,} (micro-batch "
            f"{arguments.train_batch_size} x {num_ranks} rank(s) x {sequence_length:,} tokens); {near} "
            f"{'fit' if below else 'fits'}"
        )
    accumulation, given = tokens // smallest, arguments.gradient_accumulation_steps
    _refuse_another("global_batch_tokens", tokens, "gradient_accumulation_steps", given, 1, accumulation)
    return accumulation


def _schedule_options(arguments: Any, step_tokens: int) -> Any:
    """``lr_scheduler_kwargs`` with the decay counted in steps."""
    given = arguments.lr_scheduler_kwargs
    options, tokens = dict(given or {}), arguments.decay_tokens
    if tokens is not None:
        if not _is_wsd(arguments):
            name = SchedulerType(arguments.lr_scheduler_type).value
            raise FoundryError(
                f"decay_tokens: {name} decays over the whole run; give lr_scheduler_type: warmup_stable_decay"
            )
        steps = -(-tokens // step_tokens)
        in_steps = options.get("num_decay_steps")
        _refuse_another("decay_tokens", tokens, "lr_scheduler_kwargs.num_decay_steps", in_steps, None, steps)
        return {**options, "num_decay_steps": steps}
    if _is_wsd(arguments) and "num_decay_steps" not in options:
        raise FoundryError(
            "lr_scheduler_type: warmup_stable_decay needs decay_tokens, or num_decay_steps in lr_scheduler_kwargs"
        )
    return given


def _is_wsd(arguments: TrainingArguments) -> bool:
    return SchedulerType(arguments.lr_scheduler_type) == SchedulerType.WARMUP_STABLE_DECAY


def _refuse_another(
    tokens_key: str, tokens: int, steps_key: str, given: float | None, not_given: int | None, steps: int
) -> None:
    if given not in (not_given, steps):
        way_out = "" if not_given is None else f" (--{steps_key}={not_given} takes that of a YAML file away)"
        raise FoundryError(
            f"{tokens_key}: {tokens:,} ({steps:,} steps) stands beside {steps_key} {given:,}; keep one of the two"
            f"{way_out}"
        )
