"""Metrics in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BITS_PER_BYTE = "stdlib_bits_per_byte/bits_per_byte"
CHOICE = "stdlib_summary_choice/acc"
MARGIN = "stdlib_summary_preference/margin"
TOKEN_F1 = "stdlib_summary_generate/token_f1"
PREFERENCE = "stdlib_summary_preference/acc"
STOP_RATE = "stop_rate/ended"
NO_BREAK = "\u00a0"
VERDICT_SIGNS = {"better": "▲", "worse": "▼", "no difference": "="}


@dataclass(frozen=True)
class Label:
    """How a metric is called, what it means, and what guessing reaches."""

    title: str
    meaning: str
    chance: float | None = None


LABELS = {
    BITS_PER_BYTE: Label(
        "Bits per byte", "bits needed for one byte of held-out text, beginning to end of each document"
    ),
    CHOICE: Label(
        "Choice of four", "of four real summaries, gives the function's own the highest probability", 0.25
    ),
    f"{CHOICE}_norm": Label("Choice / byte", "the same with probabilities per byte", 0.25),
    PREFERENCE: Label(
        "Preference", "gives the chosen answer with its end a higher probability than the rejected one", 0.5
    ),
    f"{PREFERENCE}_norm": Label("Preference / byte", "the same with probabilities per byte", 0.5),
    MARGIN: Label(
        "Preference margin", "log-probability of the chosen answer above that of the rejected one, in nats"
    ),
    TOKEN_F1: Label("Summary F1", "words that a generated summary shares with the true one"),
    STOP_RATE: Label("Stop rate", "answers the model ended itself; all others were cut at the limit"),
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


def number(value: float, is_share: bool) -> str:
    """A score: shares in percent, the rest with three digits."""
    text = f"{100 * value:.1f}%" if is_share else f"{value:.3f}"
    return text.replace("-", "−")


def with_error(estimate: dict[str, Any], is_share: bool) -> str:
    """``0.123 ± 0.004``; without error where there is one group only."""
    value, error = estimate["value"], estimate["standard_error"]
    if error is None:
        return number(value, is_share)
    if is_share and error == 0:
        return f"{100 * value:.1f}% ({bound(estimate)})"
    text = f"{100 * value:.1f} ± {100 * error:.1f}%" if is_share else f"{value:.3f} ± {error:.3f}"
    return text.replace("-", "−")


def bound(estimate: dict[str, Any]) -> str:
    """Without spread, as where all items are hit or none: how far the true rate can be, at 95% confidence."""
    low, high = 100 * estimate["low"], 100 * estimate["high"]
    if estimate["value"] == 1:
        return f"> {low:.1f}%"
    return f"< {high:.1f}%" if estimate["value"] == 0 else f"{low:.1f} to {high:.1f}%"


def difference(comparison: dict[str, Any], is_share: bool) -> str:
    """``+0.123 (+0.100 to +0.146)``: difference and 95% interval, of shares in points."""
    scale, digits, unit = (100, 1, f"{NO_BREAK}points") if is_share else (1, 3, "")

    def signed(value: float | None) -> str:
        if value is None:
            return "unknown"
        text = f"{scale * value:+.{digits}f}"
        return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")

    value, low, high = (signed(comparison[key]) for key in ("difference", "low", "high"))
    return f"{value}{unit} ({low} to {high})"
