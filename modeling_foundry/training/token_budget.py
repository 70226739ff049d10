"""Lengths and batches said in tokens, turned into the steps that Trainer counts.

Tokens do not change with the number of GPUs; steps do.  A step reads micro-batch x accumulation x ranks x sequence
length tokens, and every length is rounded up to whole steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import SchedulerType, TrainingArguments, get_scheduler

from ..settings import FoundryError, setting


@dataclass
class TokenCounts:
    """Keys of a pretraining recipe that are counted in tokens."""

    max_tokens: int | None = setting("length of the run, in place of max_steps", None)
    warmup_tokens: int | None = setting("length of the warm-up, in place of warmup_steps", None)
    decay_tokens: int | None = setting("length of the decay of lr_scheduler_type warmup_stable_decay", None)
    global_batch_tokens: int | None = setting(
        "tokens of a step; gradient_accumulation_steps follows from it", None
    )


def count_steps(arguments: Any, sequence_length: int, num_ranks: int | None = None) -> None:
    """Fill in ``gradient_accumulation_steps``, ``max_steps``, ``warmup_steps`` and the decay from the token keys.

    Args:
        arguments: TrainingArguments with the fields of :class:`TokenCounts`; changed in place, once or again.
        num_ranks: as if on so many; default the ranks there are.

    Raises:
        FoundryError: a length is given twice, the batch does not divide, or the schedule is impossible.
    """
    num_ranks = num_ranks or arguments.world_size
    _settle_accumulation(arguments, sequence_length, num_ranks)
    step_tokens = tokens_per_step(arguments, sequence_length, num_ranks)
    for tokens_key, steps_key, not_given in (
        ("max_tokens", "max_steps", -1),
        ("warmup_tokens", "warmup_steps", 0),
    ):
        tokens = getattr(arguments, tokens_key)
        if tokens is not None:
            steps = -(-tokens // step_tokens)
            _refuse_another(tokens_key, tokens, steps_key, getattr(arguments, steps_key), not_given, steps)
            setattr(arguments, steps_key, steps)
    if arguments.max_steps == -1:
        raise FoundryError("max_steps: missing; give max_steps or max_tokens, or --config FILE of a recipe")
    _settle_decay(arguments, step_tokens)
    check_schedule(arguments, arguments.max_steps)


def tokens_per_step(arguments: TrainingArguments, sequence_length: int, num_ranks: int | None = None) -> int:
    """micro-batch x accumulation x ranks x sequence length."""
    sequences = arguments.train_batch_size * arguments.gradient_accumulation_steps
    return sequences * (num_ranks or arguments.world_size) * sequence_length


def decay_start(arguments: TrainingArguments) -> int | None:
    """The last step of the stable part of a warmup_stable_decay schedule; None of any other schedule."""
    if not _is_wsd(arguments):
        return None
    return arguments.max_steps - (arguments.lr_scheduler_kwargs or {}).get("num_decay_steps", 0)


def _settle_accumulation(arguments: Any, sequence_length: int, num_ranks: int) -> None:
    tokens = arguments.global_batch_tokens
    if tokens is None:
        return
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
    arguments.gradient_accumulation_steps = accumulation


def _settle_decay(arguments: Any, step_tokens: int) -> None:
    options = dict(arguments.lr_scheduler_kwargs or {})
    tokens = arguments.decay_tokens
    if tokens is not None:
        if not _is_wsd(arguments):
            name = SchedulerType(arguments.lr_scheduler_type).value
            raise FoundryError(
                f"decay_tokens: {name} decays over the whole run; give lr_scheduler_type: warmup_stable_decay"
            )
        steps = -(-tokens // step_tokens)
        given = options.get("num_decay_steps")
        _refuse_another("decay_tokens", tokens, "lr_scheduler_kwargs.num_decay_steps", given, None, steps)
        arguments.lr_scheduler_kwargs = {**options, "num_decay_steps": steps}
    elif _is_wsd(arguments) and "num_decay_steps" not in options:
        raise FoundryError(
            "lr_scheduler_type: warmup_stable_decay needs decay_tokens, or num_decay_steps in lr_scheduler_kwargs"
        )


def check_schedule(arguments: Any, num_steps: int) -> None:
    """Build the schedule once on a throw-away optimizer: what it refuses is said before anything is loaded.

    Raises:
        FoundryError: ``lr_scheduler_kwargs`` or a warm-up that the schedule does not take.
    """
    import torch

    options, name = arguments.lr_scheduler_kwargs or {}, SchedulerType(arguments.lr_scheduler_type).value
    warmup_steps = arguments.get_warmup_steps(num_steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    try:
        get_scheduler(name, optimizer, warmup_steps, num_steps, options)
    except (TypeError, ValueError) as error:
        raise FoundryError(
            f"lr_scheduler_kwargs: {options} does not suit {name} ({' '.join(str(error).split())})"
        ) from error
    start = decay_start(arguments)
    if start is not None and start < warmup_steps and arguments.max_steps > 0:
        raise FoundryError(
            f"lr_scheduler_type: warmup_stable_decay: {warmup_steps:,} steps of warm-up and "
            f"{options['num_decay_steps']:,} of decay are more than max_steps {arguments.max_steps:,}"
        )


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
