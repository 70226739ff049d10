"""The panels of ``plot``: what each draws of one run, and of several."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from .runs import Axis, Run, duration, short_count


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; ``lines`` is Okabe and Ito's palette, as it can be read on the background."""

    background: str
    ink: str
    faint: str
    lines: tuple[str, ...]


THEMES = {
    "light": Theme(
        "#ffffff", "#1f2430", "#e3e6ea",
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A6500", "#000000"),
    ),
    "dark": Theme(
        "#15181e", "#e4e7ec", "#2c313b",
        ("#56B4E9", "#E69F00", "#2BC59A", "#E08FBE", "#F0E442", "#FF8A4C", "#ffffff"),
    ),
}  # fmt: skip
DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))  # runs differ in grey, too
MOST_POINTS = 400  # more than that is drawn faint, with its running median on top
GIB = 2**-30


def look(theme: Theme, place: int) -> dict[str, Any]:
    """Colour and dashes of the run at a place."""
    num_colours = len(theme.lines)
    return {
        "color": theme.lines[place % num_colours],
        "linestyle": DASHES[(place + place // num_colours) % len(DASHES)],
    }


def _lines(
    panel: Axes, runs: list[Run], axis: Axis, theme: Theme, name: str, scale: float = 1.0, **looks: Any
) -> int:
    """Draw one field of every run; returns how many runs have it."""
    found = 0
    for place, run in enumerate(runs):
        places, values = run.series(name, axis, scale)
        if not values:
            continue
        found += 1
        drawn = look(theme, place) | {"linewidth": 1.6} | looks
        if len(values) > MOST_POINTS:
            panel.plot(places, values, **drawn | {"linewidth": 0.6, "alpha": 0.3, "label": None})
            values = running_median(values, len(values) // 100)
        panel.plot(places, values, **drawn)
    return found


def running_median(values: list[float], reach: int) -> list[float]:
    """Median of ``reach`` values to each side, fewer at the ends."""
    return [median(values[max(0, i - reach) : i + reach + 1]) for i in range(len(values))]


def _nothing(panel: Axes, words: str) -> None:
    panel.set(xticks=[], yticks=[])
    panel.text(0.5, 0.5, words, transform=panel.transAxes, ha="center", va="center", alpha=0.7, wrap=True)


def draw_loss(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    _lines(panel, runs, axis, theme, "loss", label="training" if len(runs) == 1 else None)
    for place, run in enumerate(runs):
        places, values = run.series("eval_loss", axis)
        colour = theme.ink if len(runs) == 1 else look(theme, place)["color"]
        panel.plot(
            places, values, color=colour, marker="o", markersize=4, linewidth=0.8, alpha=0.9,
            label="held-out" if place == 0 else None,
        )  # fmt: skip
        if values:
            panel.annotate(
                f"{values[-1]:.3f}", (places[-1], values[-1]), (0, 7), textcoords="offset points", ha="right",
                color=colour,
            )  # fmt: skip
    panel.set_title("Loss" if len(runs) == 1 else "Loss (line: training, dots: held-out)")
    panel.set_ylabel("nats a token")
    _leave_out_the_first_fall(panel, [run.series("loss", axis)[1] for run in runs])
    if len(runs) == 1:
        if runs[0].resumes(axis):
            panel.plot(
                [], [], color=theme.ink, alpha=0.6, linewidth=0.8, linestyle=(0, (2, 3)), label="resumed"
            )
        panel.legend(loc="upper right")


def _leave_out_the_first_fall(panel: Axes, losses: list[list[float]]) -> None:
    """The first hundredth of a long run falls from ln(vocabulary); what comes after it sets the scale."""
    if min(map(len, losses)) > MOST_POINTS:
        shown = [loss for run in losses for loss in run[len(run) // 100 :]]
        reach = max(shown) - min(shown)
        panel.set_ylim(min(shown) - 0.05 * reach, max(shown) + 0.05 * reach)


def rate_words(value: float) -> str:
    """A tick's learning rate in full: 1.25e-2, 1e-2."""
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def draw_learning_rate(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    _lines(panel, runs, axis, theme, "learning_rate")
    panel.set_title("Learning rate")
    panel.set_ylabel("of the first parameter group")
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(lambda value, _: rate_words(value))


def draw_gradients(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    """Mean of the steps of a line; for one run also the largest, and what norms are clipped to."""
    single = len(runs) == 1
    if not _lines(
        panel, runs, axis, theme, "grad_norm_mean", label="mean of a line's steps" if single else None
    ):
        _lines(panel, runs, axis, theme, "grad_norm", label="last step of a line" if single else None)
    panel.set_title("Gradient norm, before clipping")
    panel.set_ylabel("L2 norm")
    if single:
        _lines(
            panel, runs, axis, theme, "grad_norm_max", label="largest", linewidth=0.8, color=theme.lines[1]
        )
        shares = runs[0].series("clipped_share")[1]
        limit = runs[0].config.get("max_grad_norm") or 0
        if limit and shares:
            share = f"{100 * sum(shares) / len(shares):.0f}% of steps clipped to {limit:g}"
            panel.axhline(limit, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), label=share)
        panel.legend(loc="upper right")
    panel.set_ylim(bottom=0)


def draw_speed(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    _lines(panel, runs, axis, theme, "tokens_per_second")
    middle = runs[0].summary().get("median_tokens_per_second")
    words = f"Speed: median {middle:,.0f} tokens/s" if len(runs) == 1 and middle else "Speed"
    panel.set_title(words)
    panel.set_ylabel("tokens/s, all ranks")
    panel.yaxis.set_major_formatter(lambda value, _: short_count(value))
    panel.set_ylim(bottom=0)


def draw_mfu(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    """Both conventions; where no run has a peak, model TFLOP/s, and why."""
    single = len(runs) == 1
    if _lines(panel, runs, axis, theme, "mfu", 100, label="full attention" if single else None):
        panel.set_title("MFU: model FLOPs over the dense peak")
        panel.set_ylabel("% of the dense peak")
        if single:
            _lines(panel, runs, axis, theme, "mfu_causal", 100, label="causal", color=theme.lines[1])
            panel.legend(loc="lower right")
    elif _lines(panel, runs, axis, theme, "model_tflops_per_rank"):
        panel.set_title("Model TFLOP/s a rank (no known peak, so no MFU)")
        panel.set_ylabel("TFLOP/s, full attention")
    else:
        panel.set_title("MFU")
        _nothing(panel, "not measured: sequences of many lengths")
    panel.set_ylim(bottom=0)


def draw_memory(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    """The allocator's peak on rank 0; host memory of its process on a CPU."""
    single = len(runs) == 1
    if _lines(panel, runs, axis, theme, "memory_peak_bytes", GIB, label="peak allocated" if single else None):
        panel.set_title("GPU memory of rank 0" if single else "GPU memory of rank 0, peak allocated")
        if single:
            _lines(
                panel, runs, axis, theme, "memory_reserved_bytes", GIB, label="reserved", color=theme.lines[1]
            )
            size = runs[0].start.get("hardware", {}).get("gpu_memory_bytes")
            if size:
                panel.axhline(
                    size * GIB, color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), label="the GPU"
                )
            panel.legend(loc="lower right")
    elif _lines(panel, runs, axis, theme, "host_memory_bytes", GIB):
        panel.set_title("Host memory of rank 0")
    else:
        panel.set_title("Memory")
        _nothing(panel, "not in this log")
    panel.set_ylabel("GiB")
    panel.set_ylim(bottom=0)


def draw_data_wait(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    panel.set_title("Waiting for data")
    panel.set_ylabel("% of step time")
    shares = [Run(run.name, [_with_share(line) for line in run.lines]) for run in runs]
    if not _lines(panel, shares, axis, theme, "data_wait_share", 100):
        _nothing(panel, "not measured in this run")
    panel.set_ylim(0, max(5.0, panel.get_ylim()[1]))


def _with_share(line: dict[str, Any]) -> dict[str, Any]:
    waited, step = line.get("data_wait_seconds"), line.get("step_seconds")
    return line | {"data_wait_share": waited / step} if waited is not None and step else line


def draw_time(panel: Axes, runs: list[Run], theme: Theme) -> None:
    """Training, evaluation and checkpoints of each run, side by side: what the rates leave out."""
    parts = {"training": "training", "evaluation": "evaluation", "checkpoints": "checkpoint"}
    panel.set_title("Where the time went")
    for place, run in enumerate(runs):
        summary, left = run.summary(), 0.0
        seconds = {words: summary.get(f"{name}_seconds", 0.0) for words, name in parts.items()}
        total = sum(seconds.values()) or 1.0
        for (words, length), colour in zip(seconds.items(), theme.lines, strict=False):
            share = 100 * length / total
            panel.barh(place, share, left=left, color=colour, height=0.5, label=words if place == 0 else None)
            left += share
        told = ", ".join(f"{words} {duration(length)}" for words, length in seconds.items())
        panel.annotate(told, (0, place - 0.33), va="bottom", fontsize=8.5)
    panel.set_yticks(range(len(runs)), [run.name for run in runs] if len(runs) > 1 else [""])
    panel.set_ylim(len(runs) + 0.2, -0.8)  # the first run on top, room for the legend below
    panel.grid(axis="y", visible=False)
    panel.set_xlim(0, 100)
    panel.set_xlabel("% of the time of all three")
    panel.legend(loc="lower left", ncols=3)
