"""From a budget to what should be trained with it: the report behind ``plan.py budget``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ... import numbers
from ..formulas.flops import count_flops
from ..formulas.parameters import count_parameters
from ..formulas.scaling import (
    LAWS,
    ScalingLaw,
    effective_tokens,
    find_law,
    predicted_half_width,
    predicted_loss,
)
from ..models.architecture import describe
from ..models.fields import PlanError
from ..models.model_files import read_model
from ..options import BudgetCommand, BudgetOptions, quantity, within
from .model import resolve_sequence

MIN_PARAMETERS, MAX_PARAMETERS = 1e4, 1e15
MIN_FLOPS, MAX_FLOPS = 1e6, 1e30
MAX_EPOCHS = 4.0  # up to which repeated tokens are almost as good as fresh ones (Muennighoff et al. 2023)
LAW_VOCABULARY = 32_000  # entries of the tokenizer of Hoffmann et al.
CURVE_SPAN = 20.0
CURVE_SCALES = (0.1, 10**-0.5, 1.0, 10**0.5, 10.0)
STATE_BYTES_EVERYWHERE, STATE_BYTES_SHARDED = 4, 12  # ZeRO-1: bf16 weights and gradients; masters and moments


@dataclass(frozen=True)
class Compute:
    """A budget in FLOPs and how it came about, for the explanation."""

    flops: float
    formula: str
    words: str


@dataclass(frozen=True)
class Caps:
    """What bounds the choice besides the budget.

    Args:
        unique_tokens: the dataset; more tokens than that are repeated epochs.
        max_tokens: dataset x epochs.
        inference_tokens: tokens the model will generate or read in its life, paid from the same budget.
    """

    unique_tokens: float | None = None
    max_tokens: float | None = None
    max_parameters: float | None = None
    inference_tokens: float = 0.0


def budget_report(command: BudgetCommand) -> dict[str, Any]:
    """Everything ``plan.py budget`` says, ready for JSON."""
    law = find_law(command.law, command.law_constants())
    compute = compute_of(command)
    caps = caps_of(command)
    if command.fit_memory:
        largest = min(caps.max_parameters or math.inf, _largest_in_memory(command))
        caps = replace(caps, max_parameters=largest)
    given = _given_model(command, law, compute, caps) if command.model or command.parameters else None
    return {
        "compute": {"flops": compute.flops, "formula": compute.formula, "words": compute.words},
        "law": law_report(law),
        "caps": vars(caps),
        "given": given,
        "optima": [optimum_report(other, compute.flops, caps) for other in _with(law)],
        "isoflop_curves": isoflop_curves(law, compute.flops, caps),
        "loss_curve": _loss_curve_of(given, law, compute.flops, caps),
    }


def _with(law: ScalingLaw) -> list[ScalingLaw]:
    """The chosen law first, then the published ones beside it."""
    return [law, *(other for other in LAWS.values() if other.name != law.name)]


def law_report(law: ScalingLaw) -> dict[str, Any]:
    return {
        "name": law.name,
        "constants": {key: getattr(law, key) for key in ("E", "A", "B", "alpha", "beta")},
        "standard_errors": law.standard_errors,
        "source": law.source,
    }


# ------------------------------------------------------------------------------------------------ budget


def compute_of(command: BudgetOptions) -> Compute:
    """The budget in FLOPs from exactly one of: FLOPs, GPU-hours, money.

    Raises:
        PlanError: none or several given, or a GPU whose MFU is not known.
    """
    flops = quantity("flops", command.flops, MIN_FLOPS, MAX_FLOPS)
    ways = [name for name in ("flops", "hours", "usd") if getattr(command, name) is not None]
    if len(ways) != 1:
        found = "none" if not ways else " and ".join(ways)
        raise PlanError(
            f"budget: give exactly one of --flops, --hours (of the GPUs) and --usd; found {found}"
        )
    if flops is not None:
        return Compute(flops, "C as given", "as given")
    mfu = command.utilisation()
    if mfu is None:
        raise PlanError(f"mfu: no figure is known for {command.gpu}; give --mfu")
    ranks = command.num_gpus or 8
    hours, words = command.hours or 0.0, f"{ranks} x {command.gpu_name()}"
    if command.usd is not None:
        if not command.usd_per_gpu_hour:
            raise PlanError("usd_per_gpu_hour: missing; --usd needs the price of one GPU for one hour")
        hours = command.usd / command.usd_per_gpu_hour / ranks
        words = f"${command.usd:,.0f} at ${command.usd_per_gpu_hour:g} a GPU-hour = {hours:,.1f} h of {words}"
    peak = command.peak_flops()
    total = ranks * peak * mfu * hours * 3600 * command.uptime
    within("budget", total, MIN_FLOPS, MAX_FLOPS)
    formula = f"{ranks} x {peak / 1e12:g}e12 x {mfu:g} x {hours:,.4g} h x 3600 s"
    formula += f" x {command.uptime:g} uptime" if command.uptime < 1 else ""
    return Compute(total, f"C = GPUs x peak x MFU x time = {formula}", words)


def caps_of(command: BudgetOptions) -> Caps:
    """What bounds the choice, from the options."""
    unique = quantity("dataset_tokens", command.dataset_tokens, 1, 1e18)
    if unique is None and command.max_epochs is not None:
        raise PlanError("max_epochs: needs --dataset_tokens, the tokens of one epoch")
    largest = quantity("max_parameters", command.max_parameters, MIN_PARAMETERS, MAX_PARAMETERS)
    return Caps(
        unique_tokens=unique,
        max_tokens=None if unique is None else unique * (command.max_epochs or MAX_EPOCHS),
        max_parameters=largest,
        inference_tokens=quantity("inference_tokens", command.inference_tokens, 0, 1e20) or 0.0,
    )


def _largest_in_memory(command: BudgetCommand) -> float:
    """Parameters whose ZeRO-1 state alone fills the GPU: an upper bound, activations come on top."""
    memory = command.needed_memory_bytes()
    return memory / (STATE_BYTES_EVERYWHERE + STATE_BYTES_SHARDED / (command.num_gpus or 8))


# ------------------------------------------------------------------------------------------- a given model


def _given_model(command: BudgetCommand, law: ScalingLaw, compute: Compute, caps: Caps) -> dict[str, Any]:
    size = _model_size(command)
    parameters, per_token = size["parameters"], size["training_flops_per_token"]
    inference = caps.inference_tokens * per_token / 3
    training = compute.flops - inference
    if training <= 0:
        raise PlanError(
            f"inference_tokens: serving {caps.inference_tokens:.3g} tokens takes {inference:.3g} FLOPs, "
            f"more than the budget of {compute.flops:.3g}"
        )
    affordable = training / per_token
    tokens = min(affordable, caps.max_tokens or math.inf)
    report = size | loss_report(law, parameters, tokens, caps.unique_tokens)
    report["unspent_flops"] = training - tokens * per_token
    report["steps"] = _steps(size, compute, law, report, inference)
    best = constrained_optimum(law, compute.flops, caps)
    report["loss_over_optimum"] = report["loss"] - predicted_loss(law, *best, caps.unique_tokens)
    return report


def _model_size(command: BudgetCommand) -> dict[str, Any]:
    if command.model and command.parameters:
        raise PlanError("model: give --model or --parameters, not both")
    if command.parameters:
        parameters = quantity("parameters", command.parameters, MIN_PARAMETERS, MAX_PARAMETERS) or 0.0
        words = "as given"
        return {
            "parameters": parameters,
            "training_flops_per_token": 6 * parameters,
            "words": words,
            "flops_words": "6 N",
            "notes": [],
        }
    file = read_model(str(command.model))
    sequence = resolve_sequence(command.sequence_length, file)
    count = count_parameters(file.architecture)
    notes = []
    if file.architecture.has_experts:
        notes.append(
            "the laws were fitted to dense models: for experts the loss is a guess, total N an optimistic one"
        )
    rows = file.architecture.vocab_size
    if rows != LAW_VOCABULARY:
        notes.append(
            f"the laws' tokens come from {LAW_VOCABULARY:,} entries, this model's from {rows:,}: compare the "
            "losses of such models with each other, not with a measured one"
        )
    return {
        "parameters": count.total,
        "training_flops_per_token": count_flops(file.architecture, sequence).training_per_token,
        "flops_words": "6 x matmul weights + attention",
        "words": f"{file.architecture.family}: {describe(file.architecture)}, {sequence:,} tokens a sequence",
        "notes": notes,
    }


def _steps(
    size: dict, compute: Compute, law: ScalingLaw, report: dict, inference: float
) -> list[dict[str, str]]:
    """The explanation, in the earlier tool's order."""
    parameters, per_token, tokens = size["parameters"], size["training_flops_per_token"], report["tokens"]
    served = f" - {inference:.4g} for serving" if inference else ""
    capped = " (capped by the dataset)" if report["unspent_flops"] > 1e-6 * compute.flops else ""
    worth = report["effective_tokens"]
    loss = f"L = {law.E:.4g} + {law.A:.5g}/N^{law.alpha:.4g} + {law.B:.5g}/D^{law.beta:.4g}"
    size_term, data_term = report["size_term"], report["data_term"]
    repeated = f"; {report['epochs']:.3g} epochs are worth {numbers.count(worth)}" if worth < tokens else ""
    width = report["half_width"]
    return [
        {"title": "Step 1  N, parameters", "how": size["words"], "value": f"{parameters:,.0f}"},
        {"title": "Step 2  C, compute", "how": compute.formula, "value": f"{numbers.power(compute.flops)} FLOPs"},
        {"title": "Step 3  f, training FLOPs a token", "how": size["flops_words"],
         "value": f"{per_token / 1e9:,.2f} GF"},
        {"title": "Step 4  D, tokens", "how": f"D = C / f{served}{capped}{repeated}",
         "value": f"{tokens / 1e9:,.2f}B"},
        {"title": "Step 5  L, loss", "how": f"{loss} = {law.E:.4f} + {size_term:.4f} + {data_term:.4f}",
         "value": f"{report['loss']:.4f}" + (f" ± {width:.4f}" if width else "")},
    ]  # fmt: skip


def loss_report(
    law: ScalingLaw, parameters: float, tokens: float, unique_tokens: float | None
) -> dict[str, Any]:
    """Loss with its interval, its two terms, what the other laws say, and what is outside their range."""
    worth = effective_tokens(tokens, unique_tokens)
    loss = predicted_loss(law, parameters, tokens, unique_tokens)
    data_term = law.B * worth**-law.beta
    return {
        "tokens": tokens,
        "epochs": None if unique_tokens is None else tokens / unique_tokens,
        "effective_tokens": worth,
        "tokens_per_parameter": tokens / parameters,
        "loss": loss,
        "half_width": predicted_half_width(law, parameters, tokens, unique_tokens),
        "size_term": loss - law.E - data_term,
        "data_term": data_term,
        "other_laws": {
            other.name: predicted_loss(other, parameters, tokens, unique_tokens)
            for other in LAWS.values()
            if other.name != law.name
        },
        "warnings": law.warnings(parameters, tokens),
    }


# ------------------------------------------------------------------------------------------------ optimum


def optimum_report(law: ScalingLaw, flops: float, caps: Caps) -> dict[str, Any]:
    """Best N and D of one law under the budget and the caps."""
    parameters, tokens = constrained_optimum(law, flops, caps)
    spent = 6 * parameters * tokens + 2 * parameters * caps.inference_tokens
    free = law.optimum(flops)
    bound = [
        name
        for name, value, cap in (
            ("dataset", tokens, caps.max_tokens),
            ("parameters", parameters, caps.max_parameters),
        )
        if cap is not None and value >= cap * (1 - 1e-6)
    ]
    return {
        "law": law.name,
        "parameters": parameters,
        "parameters_interval": law.optimum_interval(flops) if caps == Caps() else None,
        "unconstrained_parameters": free[0],
        "unspent_flops": max(0.0, flops - spent) if flops - spent > 1e-6 * flops else 0.0,
        "bound_by": bound,
        **loss_report(law, parameters, tokens, caps.unique_tokens),
    }


def constrained_optimum(law: ScalingLaw, flops: float, caps: Caps) -> tuple[float, float]:
    """(N, D) of the least predicted loss with 6 N D + 2 N x (tokens served) within the budget and the caps.

    Raises:
        PlanError: serving alone takes the budget.
    """
    if caps == Caps():
        return law.optimum(flops)
    low, high = MIN_PARAMETERS, _largest_trainable(flops, caps)
    if high <= low:
        raise PlanError(f"budget: {flops:.3g} FLOPs leave nothing to train under the caps given")

    def loss(log_parameters: float) -> float:
        parameters = math.exp(log_parameters)
        return predicted_loss(law, parameters, _tokens_for(parameters, flops, caps), caps.unique_tokens)

    best = minimise(loss, math.log(low), math.log(high))
    return math.exp(best), _tokens_for(math.exp(best), flops, caps)


def _largest_trainable(flops: float, caps: Caps) -> float:
    """N that leaves one token to train on, or the cap."""
    return min(caps.max_parameters or math.inf, flops / (6 + 2 * caps.inference_tokens))


def _tokens_for(parameters: float, flops: float, caps: Caps) -> float:
    affordable = (flops - 2 * parameters * caps.inference_tokens) / (6 * parameters)
    return max(1.0, min(affordable, caps.max_tokens or math.inf))


def minimise(function: Callable[[float], float], low: float, high: float) -> float:
    """Least point of a function of one variable: a grid, then golden sections around its best point."""
    steps = 400
    points = [low + (high - low) * i / steps for i in range(steps + 1)]
    best = min(range(steps + 1), key=lambda i: function(points[i]))
    left, right = points[max(0, best - 1)], points[min(steps, best + 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = right - ratio * (right - left), left + ratio * (right - left)
        if function(a) < function(b):
            right = b
        else:
            left = a
    middle = (left + right) / 2
    return min((middle, points[best]), key=function)


def isoflop_curves(law: ScalingLaw, flops: float, caps: Caps) -> list[dict[str, Any]]:
    """The budget's own curve and those of smaller and larger ones that leave something to train."""
    budgets = [flops * scale for scale in CURVE_SCALES]
    return [
        isoflop_curve(law, budget, caps)
        for budget in budgets
        if caps == Caps() or _largest_trainable(budget, caps) > MIN_PARAMETERS
    ]


def isoflop_curve(law: ScalingLaw, flops: float, caps: Caps, num_points: int = 61) -> dict[str, Any]:
    """Loss against N at a fixed budget, and its best.

    From a 20th of the best N to 20 times it, as far as the caps allow and a 20th of the best D is affordable.
    """
    best = constrained_optimum(law, flops, caps)
    fewest_tokens = max(1.0, best[1] / CURVE_SPAN)
    affordable = flops / (6 * fewest_tokens + 2 * caps.inference_tokens)
    low, high = best[0] / CURVE_SPAN, min(affordable, best[0] * CURVE_SPAN, caps.max_parameters or math.inf)
    sizes = [low * (high / low) ** (index / (num_points - 1)) for index in range(num_points)]
    return {
        "flops": flops,
        "points": [_point(law, size, _tokens_for(size, flops, caps), caps) for size in sizes],
        "best": _point(law, *best, caps),
    }


def loss_curve(
    law: ScalingLaw, parameters: float, middle: float, caps: Caps, num_points: int = 61
) -> dict[str, Any]:
    """Loss against D for one N, from a 30th of ``middle`` tokens to 30 times as many."""
    tokens = [middle * 30 ** (2 * index / (num_points - 1) - 1) for index in range(num_points)]
    return {
        "parameters": parameters,
        "tokens": middle,
        "points": [_point(law, parameters, count, caps) for count in tokens],
    }


def _loss_curve_of(given: dict[str, Any] | None, law: ScalingLaw, flops: float, caps: Caps) -> dict[str, Any]:
    """Of the given model and its tokens, else of the optimum."""
    if given is not None:
        return loss_curve(law, given["parameters"], given["tokens"], caps)
    return loss_curve(law, *constrained_optimum(law, flops, caps), caps)


def _point(law: ScalingLaw, parameters: float, tokens: float, caps: Caps) -> dict[str, float | None]:
    return {
        "parameters": parameters,
        "tokens": tokens,
        "loss": predicted_loss(law, parameters, tokens, caps.unique_tokens),
        "half_width": predicted_half_width(law, parameters, tokens, caps.unique_tokens),
    }
