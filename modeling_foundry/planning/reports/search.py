"""From a budget to an architecture: the report behind ``plan.py search``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...numbers import percent
from ..formulas.memory import TrainingSetup
from ..formulas.scaling import (
    EXCESS_PARAMETERS_CONSTANT,
    NORMAL_95,
    REPEATED_TOKENS_CONSTANT,
    ScalingLaw,
    find_law,
    optimal_parameters_for,
)
from ..models.fields import PlanError
from ..options import SearchCommand
from .budget import Caps, caps_of, compute_of, law_report
from .candidates import (
    SERVING_BATCH,
    SERVING_CONTEXT,
    Bounds,
    Candidates,
    all_candidates,
    measures,
    reference_tokens_per_token,
)
from .emit import plan_schedule, write_experiment

COMMON_VOCABULARIES = [32_000, 50_304, 100_352, 128_256, 151_936]
LOSS_DECIMALS = 4  # below this the next criterion decides
LARGEST_FRONT = 12
FRONT_DEPTH = 0.1  # nats: what is worse than this is another budget's model


def search_report(command: SearchCommand) -> dict[str, Any]:
    """Everything ``plan.py search`` says, ready for JSON."""
    law = find_law(command.law, command.law_constants())
    compute, caps = compute_of(command), caps_of(command)
    setup = TrainingSetup(
        micro_batch=command.micro_batch,
        sequence_length=command.sequence_length,
        accumulation=2,
        num_ranks=command.num_gpus or 8,
        sharding="none" if command.num_gpus == 1 else "zero1",
        checkpointing=command.checkpointing,
    )
    bounds = Bounds(
        (command.min_layers, command.max_layers), (command.min_hidden, command.max_hidden),
        (command.min_width_over_depth, command.max_width_over_depth),
    )  # fmt: skip
    vocabularies = sorted(set(command.vocab_sizes or COMMON_VOCABULARIES))
    tieds = (True, False) if command.tie_word_embeddings is None else (command.tie_word_embeddings,)
    tables = [
        score(all_candidates(bounds, vocabularies, tied), setup, law, compute.flops, caps) for tied in tieds
    ]
    table = _join(tables)
    num_considered = len(table["loss"])
    available = command.needed_memory_bytes() * (1 - command.margin)
    table = _select(table, _allowed(table, caps, _usable(setup, available)))
    if not len(table["loss"]):
        raise PlanError(f"search: none of {num_considered:,} candidates fits the constraints; widen them")
    order = np.lexsort(
        (table["training_bytes"], table["decode_bytes_per_token"], table["loss"].round(LOSS_DECIMALS))
    )
    table = _select(table, order)
    tie = within_uncertainty(table, law)
    chosen = recommended(table, tie)
    report = {
        "compute": {"flops": compute.flops, "formula": compute.formula, "words": compute.words},
        "law": law_report(law),
        "setup": {"sequence_length": setup.sequence_length, "micro_batch": setup.micro_batch,
                  "num_gpus": setup.num_ranks, "gpu": command.gpu_name(), "available_bytes": available},
        "num_considered": num_considered,
        "num_allowed": len(table["loss"]),
        "flatness": None if tie is None else flatness(table, tie),
        "recommended": chosen,
        "notes": _notes(law, table, chosen, compute.flops, caps),
        "best": [_row(table, index) for index in first_of_each_shape(table, command.top)],
        "front": [_row(table, index) for index in pareto_front(table)],
        "serving": {"batch": SERVING_BATCH, "context_tokens": SERVING_CONTEXT},
    }  # fmt: skip
    if command.emit is not None:
        report["emitted"] = _emit(command, chosen, setup, compute.flops, available)
    return report


def recommended(table: dict[str, np.ndarray], tie: np.ndarray | None) -> dict[str, Any]:
    """The cheapest to serve of those the law cannot tell from the best; without a covariance, the best."""
    if tie is None:
        return _row(table, 0)
    rows = np.flatnonzero(tie)
    costs = (table[name][rows] for name in ("training_bytes", "loss", "decode_bytes_per_token"))
    return _row(table, int(rows[np.lexsort(tuple(costs))[0]]))


def _notes(
    law: ScalingLaw, table: dict[str, np.ndarray], chosen: dict[str, Any], flops: float, caps: Caps
) -> list[str]:
    """The law's source, what lies outside its runs, and what the dataset leaves unspent."""
    notes = [f"{law.name}: {law.source}"]
    for name, row in (("best", _row(table, 0)), ("recommended", chosen)):
        notes += [f"{name}: {warning}" for warning in law.warnings(row["law_parameters"], row["law_tokens"])]
        spent = row["training_flops_per_token"] * (row["tokens"] + caps.inference_tokens / 3)
        if spent < flops * (1 - 1e-6):
            share = percent(1 - spent / flops)
            notes.append(f"{name}: {share} of the budget stays unspent, the dataset's epochs are used up")
    return notes


def _emit(
    command: SearchCommand,
    chosen: dict[str, Any],
    setup: TrainingSetup,
    flops: float,
    available: float,
) -> dict[str, Any]:
    schedule = plan_schedule(chosen, setup, flops, None if command.use_cpu else available)
    words = f"Found by `plan.py search` for {flops:.4g} FLOPs."
    paths = write_experiment(str(command.emit), chosen, schedule, command.data_dir, command.use_cpu, words)
    return {"paths": paths, "schedule": vars(schedule), "tokens_per_step": schedule.tokens_per_step}


def score(
    candidates: Candidates, setup: TrainingSetup, law: ScalingLaw, flops: float, caps: Caps
) -> dict[str, np.ndarray]:
    """All columns of all candidates, predicted loss included.

    The tokens a candidate can afford are counted in tokens of a 32,000-entry vocabulary before they enter the
    law, so losses of different vocabularies can be compared: all are nats per such token.  Repeated tokens and
    the parameters that the dataset cannot fill are discounted as in ``scaling.predicted_loss``.
    """
    columns = candidates.columns | measures(candidates, setup)
    columns["tie_word_embeddings"] = np.full(len(candidates), candidates.tied)
    served = caps.inference_tokens * columns["training_flops_per_token"] / 3
    tokens = np.maximum(flops - served, 0) / columns["training_flops_per_token"]
    if caps.max_tokens is not None:
        tokens = np.minimum(tokens, caps.max_tokens)
    columns["tokens"] = tokens
    ratio = reference_tokens_per_token(columns["vocab_size"])
    worth = tokens * ratio
    if caps.unique_tokens is not None:
        unique = caps.unique_tokens * ratio
        worth = _discounted(worth, unique, REPEATED_TOKENS_CONSTANT)
        enough = _optimal_parameters(law, unique)
        columns["law_parameters"] = _discounted(columns["law_parameters"], enough, EXCESS_PARAMETERS_CONSTANT)
    columns["law_tokens"] = worth
    with np.errstate(divide="ignore"):
        columns["loss"] = law.E + law.A * columns["law_parameters"] ** -law.alpha + law.B * worth**-law.beta
    return columns


def _discounted(values: np.ndarray, enough: np.ndarray, constant: float) -> np.ndarray:
    """What values are worth when those beyond ``enough`` count less and less (Muennighoff, equations 5, 6)."""
    excess = np.maximum(values / enough - 1, 0)
    return np.minimum(values, enough * (1 - constant * np.expm1(-excess / constant)))


def _optimal_parameters(law: ScalingLaw, tokens: np.ndarray) -> np.ndarray:
    """``optimal_parameters_for`` of a column that holds few different values."""
    different, places = np.unique(tokens, return_inverse=True)
    return np.array([optimal_parameters_for(law, value) for value in different.tolist()])[places]


def _usable(setup: TrainingSetup, available: float) -> float:
    """Bytes left for the allocator."""
    constants = setup.calibration
    return available - constants.outside_allocator_bytes - constants.collectives_bytes * (setup.num_ranks > 1)


def _allowed(table: dict[str, np.ndarray], caps: Caps, usable: float) -> np.ndarray:
    allowed = np.isfinite(table["loss"]) & (table["training_bytes"] <= usable)
    if caps.max_parameters is not None:
        allowed &= table["total_parameters"] <= caps.max_parameters
    return allowed


def _join(tables: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _select(table: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: column[rows] for name, column in table.items()}


# -------------------------------------------------------------------------- how sure, and what trades off


def within_uncertainty(table: dict[str, np.ndarray], law: ScalingLaw) -> np.ndarray | None:
    """Whether each candidate's loss differs from the first one's by less than the law can tell (95%).

    The constants' errors move all predictions together, so it is the difference whose variance counts.
    """
    if law.covariance is None:
        return None
    size = law.A * table["law_parameters"] ** -law.alpha
    data = law.B * table["law_tokens"] ** -law.beta
    gradient = np.stack(
        [size, data, np.full_like(size, law.E), -size * np.log(table["law_parameters"]),
         -data * np.log(table["law_tokens"])]
    )  # fmt: skip
    difference = gradient - gradient[:, :1]
    variance = np.einsum("in,ij,jn->n", difference, np.asarray(law.covariance), difference)
    return table["loss"] - table["loss"][0] <= NORMAL_95 * np.sqrt(np.maximum(variance, 0))


def flatness(table: dict[str, np.ndarray], tie: np.ndarray) -> dict[str, Any]:
    """How many candidates the law cannot tell from the best, and how far apart they are."""
    names = (
        "total_parameters",
        "num_hidden_layers",
        "hidden_size",
        "tokens",
        "loss",
        "decode_bytes_per_token",
    )
    return {
        "num_tied": int(tie.sum()),
        "share": float(tie.mean()),
        "ranges": {name: [float(table[name][tie].min()), float(table[name][tie].max())] for name in names},
    }


def first_of_each_shape(table: dict[str, np.ndarray], number: int) -> list[int]:
    """The first rows that differ in depth, width, feed-forward or vocabulary; heads hardly count."""
    columns = [
        table[name] for name in ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    ]
    seen: dict[tuple, int] = {}
    for index in range(len(table["loss"])):
        if len(seen) == number:
            break
        seen.setdefault(tuple(column[index].item() for column in columns), index)
    return list(seen.values())


def pareto_front(table: dict[str, np.ndarray]) -> list[int]:
    """Rows that nothing beats in loss, decode bytes and training memory at once; the table is sorted."""
    costs = np.stack([table["decode_bytes_per_token"], table["training_bytes"]])
    remaining = np.flatnonzero(table["loss"] <= table["loss"][0] + FRONT_DEPTH)
    front: list[int] = []
    while len(remaining) and len(front) < 500:
        first = remaining[0]
        front.append(int(first))
        remaining = remaining[(costs[:, remaining] < costs[:, first : first + 1]).any(0)]
    return _spread(front)


def _spread(front: list[int]) -> list[int]:
    """At most so many rows of a long front, evenly from its best loss to its cheapest."""
    if len(front) <= LARGEST_FRONT:
        return front
    return [front[round(i * (len(front) - 1) / (LARGEST_FRONT - 1))] for i in range(LARGEST_FRONT)]


def _row(table: dict[str, np.ndarray], index: int) -> dict[str, Any]:
    return {name: column[index].item() for name, column in table.items()}
