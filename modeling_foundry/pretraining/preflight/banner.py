"""What a run is, said once at its start: exact where it was counted, and called a forecast where it was not."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.console import Console
from rich.text import Text
from torch import nn

from ...numbers import count, gib, hours, percent
from ...planning.formulas.parameters import count_parameters
from ...training.plan import RunPlan
from ...training.precision import engine_of_sharding, precision_in_force
from ..model_settings import describe_model
from .forecast import SHARDING_WORDS, RunForecast

WIDTH = 100
EXECUTIONS = {"eager": "not compiled", "compiled_layers": "layers compiled", "compiled": "compiled whole"}
Rows = list[tuple[str, str]]


def banner_rows(
    model: nn.Module, forecast: RunForecast, plan: RunPlan, backend: str, num_corpus_tokens: int | None
) -> Rows:
    """Label and words of each line.

    Args:
        model: counted, not trusted.
        backend: attention kernel.
        num_corpus_tokens: tokens of one epoch; None where no data was opened.
    """
    return [
        ("model", describe_model(model)),
        ("parameters", _parameters(model, forecast)),
        *_batch(plan, num_corpus_tokens),
        ("schedule", _schedule(plan)),
        ("compute", _compute(model, forecast, plan.arguments, backend)),
        ("hardware", _hardware(forecast)),
        ("dense peak", _peak(forecast)),
        *_forecasts(forecast, is_float8=plan.arguments.float8),
    ]


def print_rows(title: str, rows: Rows, console: Console | None = None) -> None:
    """Two columns, at most 100 wide; in a file exactly so, without colour, a line a line."""
    console = console or Console(highlight=False)
    width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    console.print(title, style="bold", markup=False, soft_wrap=True)
    indent = 4 + max((len(label) for label, _ in rows), default=0)
    for label, words in rows:
        first, *others = textwrap.wrap(words, max(20, width - indent), break_on_hyphens=False) or [""]
        line = Text(f"  {label}".ljust(indent), style="cyan") + Text(first, style="default")
        console.print(line, soft_wrap=True)
        for other in others:
            console.print(" " * indent + other, markup=False, soft_wrap=True)


def _parameters(model: nn.Module, forecast: RunForecast) -> str:
    counted = sum(parameter.numel() for parameter in model.parameters())
    planned = count_parameters(forecast.architecture).total
    agreement = "the planner's count too" if counted == planned else f"but the planner counts {planned:,}"
    return f"{counted:,}, counted in the model, {agreement}"


def _batch(plan: RunPlan, num_corpus_tokens: int | None) -> Rows:
    tokens = plan.tokens_per_step or 0
    total = tokens * (plan.max_steps or 0)
    ranks = f"{plan.num_ranks} rank{'s' * (plan.num_ranks > 1)}"
    factors = f"{plan.micro_batch} sequences x {plan.accumulation} accumulation x {ranks} x"
    rounded = f" ({count(total)})" if total >= 1e6 else ""
    epochs = "the data was not opened"
    if num_corpus_tokens is not None:
        epochs = f"{total / max(1, num_corpus_tokens):.3g} epochs of {num_corpus_tokens:,}"
    return [
        ("batch", f"{factors} {plan.sequence_length:,} tokens = {tokens:,} tokens a step"),
        ("run", f"{plan.max_steps:,} steps = {total:,} tokens{rounded}; {epochs}"),
    ]


def _schedule(plan: RunPlan) -> str:
    """``cosine_with_min_lr to 0.0003, 100 steps of warm-up (warmup_tokens)``."""
    words = [f"{plan.schedule}, highest rate {plan.arguments.learning_rate:g}"]
    origin = plan.origins.get("warmup_steps")
    words.append(f"{plan.warmup_steps:,} steps of warm-up{f' ({origin})' if origin else ''}")
    if plan.last_stable_step is not None:
        words.append(f"decay from step {plan.last_stable_step:,} on")
    return ", ".join(words)


def _compute(model: nn.Module, forecast: RunForecast, arguments: Any, backend: str) -> str:
    setup = forecast.setup
    optimizer = str(getattr(arguments.optim, "value", arguments.optim))
    precision = precision_in_force(model, arguments, engine_of_sharding(setup.sharding))
    words = [str(precision), f"attention {backend}"]
    words.append(EXECUTIONS[setup.execution])
    words += ["activations recomputed"] * setup.checkpointing
    return ", ".join([*words, "Muon and AdamW" if setup.optimizer == "muon" else optimizer])


def _hardware(forecast: RunForecast) -> str:
    hardware = forecast.hardware
    if hardware.memory_bytes is None:
        several = hardware.num_ranks > 1
        return (
            f"CPU, {hardware.num_ranks} ranks, {SHARDING_WORDS[forecast.setup.sharding]}"
            if several
            else "CPU, 1 rank"
        )
    return f"{hardware.num_ranks} x {hardware.name}, {SHARDING_WORDS[forecast.setup.sharding]}"


def _peak(forecast: RunForecast) -> str:
    gpu, ranks = forecast.hardware.gpu, forecast.hardware.num_ranks
    if gpu is None:
        return "not known"
    total = f", {gpu.bf16_tflops * ranks / 1000:,.2f} PFLOP/s in all" if ranks > 1 else ""
    return f"{gpu.bf16_tflops:,.0f} TFLOP/s bf16 a GPU, without sparsity{total}"


def _forecasts(forecast: RunForecast, is_float8: bool) -> Rows:
    rows: Rows = []
    if forecast.memory is not None:
        available = forecast.hardware.memory_bytes or 0
        state = "free"
        if is_float8 and forecast.setup.precision != "fp8":
            state += ", counted as bf16: fp8 takes less"
        fits = "" if forecast.fits else f": does not fit, {forecast.largest_micro_batch} sequences would"
        rows.append(
            (
                "forecast memory",
                f"{gib(forecast.memory.device_bytes)} a GPU of {gib(available)} {state}{fits}",
            )
        )
    rate = forecast.rate
    if isinstance(rate, str):
        return [*rows, ("forecast", f"no speed and no time: {rate}")]
    return [
        *rows,
        ("forecast MFU", f"{percent(rate.mfu)}, from {rate.mfu_source}"),
        ("forecast speed", f"{rate.tokens_per_second:,.0f} tokens/s, {rate.step_seconds:.2f} s a step"),
        ("forecast time", f"{hours(rate.hours)} without evaluation and checkpoints"),
    ]
