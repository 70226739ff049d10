"""Metrics in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BITS_PER_BYTE = "stdlib_bits_per_byte/bits_per_byte"
CHOICE = "stdlib_summary_choice/acc"
PREFERENCE = "stdlib_summary_preference/acc"
STOP_RATE = "stop_rate/ended"
VERDICT_SIGNS = {"better": "▲", "worse": "▼", "no difference": "="}


@dataclass(frozen=True)
class Label:
    """How a metric is called, what it means, and what guessing reaches."""

    title: str
    meaning: str
    chance: float | None = None


LABELS = {
    BITS_PER_BYTE: Label(
        "Bits per byte", "bits needed for one byte of held-out source code, beginning to end of each file"
    ),
    CHOICE: Label(
        "True summary of four",
        "gives a held-out function's own summary the highest probability of four",
        0.25,
    ),
    "stdlib_summary_choice/acc_norm": Label(
        "True summary of four, per byte", "the same with probabilities per byte of the summary", 0.25
    ),
    PREFERENCE: Label(
        "Chosen over rejected",
        "gives the chosen answer, its end included, a higher probability than the rejected",
        0.5,
    ),
    "stdlib_summary_preference/acc_norm": Label(
        "Chosen over rejected, per byte", "the same with probabilities per byte of the answer", 0.5
    ),
    "stdlib_summary_generate/token_f1": Label(
        "Words shared with the truth (F1)",
        "words of the generated summary that the true one has, and the reverse",
    ),
    STOP_RATE: Label(
        "Ends its answer itself", "produced its end token before the limit; everything else was cut"
    ),
}
ORDER = list(LABELS)


def label_of(metric: str) -> Label:
    """The label of a metric; lm-eval's own name where the task is not ours."""
    return LABELS.get(metric) or Label(metric.replace("/", " "), "as lm-eval defines it")


def in_order(metrics: Any) -> list[str]:
    """Our metrics in the order of the report, others after them by name."""
    return sorted(
        metrics, key=lambda metric: (ORDER.index(metric) if metric in ORDER else len(ORDER), metric)
    )


def number(value: float | None, is_share: bool, signed: bool = False) -> str:
    """A score: shares in percent, the rest with three digits."""
    if value is None or value != value:
        return "–"
    sign = "+" if signed and value > 0 else ""
    text = f"{value:.1%}".replace("%", " %") if is_share else f"{value:.3f}"
    return sign + text.replace("-", "−")


def points(value: float | None, is_share: bool) -> str:
    """A difference of scores: shares in points."""
    if value is None or value != value:
        return "–"
    text = f"{100 * value:+.1f} points" if is_share else f"{value:+.3f}"
    return text.replace("-", "−")


def sentence(comparison: dict[str, Any], is_share: bool) -> str:
    """One comparison in plain words."""
    before, after, verdict = comparison["before"], comparison["after"], comparison["verdict"]
    low, high = points(comparison["low"], is_share), points(comparison["high"], is_share)
    if verdict == "no difference":
        return f"no difference between {after} and {before} can be shown ({low} to {high})"
    return (
        f"{after} is {verdict} than {before}: {points(comparison['difference'], is_share)} ({low} to {high})"
    )
