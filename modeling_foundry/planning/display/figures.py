"""Reports as pictures: FLOPs by component, memory against the GPU, IsoFLOP curves, loss against tokens."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib

from ... import numbers
from ...files import write_atomically
from ..models.fields import PlanError

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

# Okabe and Ito's palette: told apart with any colour vision, and in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999", "#000000")
OUTSIDE = "context and libraries"
# A term of memory has the same colour in every picture; what is large and common has the palette's own.
TERM_COLOURS = {
    "parameters": COLOURS[0],
    "optimizer state": COLOURS[1],
    "gathered parameters": "#004C77",
    "communication buffers": COLOURS[2],
    "gradients": COLOURS[3],
    "bf16 copies of weights": "#7FB8DE",
    "fp8 copies of weights": "#B8D8EE",
    "activations of the layers": COLOURS[4],
    "last norm": COLOURS[5],
    "loss": COLOURS[6],
    "head gradient": "#B39C00",
    "one layer's backward": COLOURS[8],
    "optimizer workspace": "#8C5A00",
    OUTSIDE: COLOURS[7],
}
HALO = [withStroke(linewidth=2.5, foreground="white")]  # words across a line stay readable
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "figure.dpi": 150,
}


def draw_model(report: dict[str, Any], folder: str) -> list[str]:
    """FLOPs by component and the memory of one rank."""
    return [
        save(flops_figure(report["flops"]), folder, "plan_flops"),
        save(memory_figure(_one_bar(report["memory"]), report["memory"]["gpu_bytes"]), folder, "plan_memory"),
    ]


def draw_memory(report: dict[str, Any], folder: str) -> list[str]:
    """Memory of one rank against the micro-batch; nothing when nothing fits."""
    if report["best"] is None:
        return []
    bars = [
        (f"{bar['micro_batch']}", bar["terms_bytes"], bar["outside_allocator_bytes"])
        for bar in report["bars"]
    ]
    figure = memory_figure(bars, report["gpu"]["bytes"], "micro-batch, sequences", report["gpu"]["name"])
    return [save(figure, folder, "plan_fit")]


def draw_budget(report: dict[str, Any], folder: str) -> list[str]:
    """IsoFLOP curves with their optima, and loss against tokens with its interval."""
    return [
        save(isoflop_figure(report["isoflop_curves"], report["law"]["name"]), folder, "plan_isoflop"),
        save(loss_figure(report["loss_curve"], report["law"]["name"]), folder, "plan_loss"),
    ]


def save(figure: Figure, folder: str, name: str) -> str:
    """Write a picture atomically and return its path.

    Raises:
        PlanError: the folder cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    path = Path(folder) / f"{name}.png"
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise PlanError(f"plot: cannot write {path} ({error.strerror})") from error
    return str(path)


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
        axes.tick_params(length=0)
    return figure, axes


def flops_figure(flops: dict[str, Any]) -> Figure:
    """Forward FLOPs of one token, full and causal side by side."""
    full, causal = flops["forward_per_token"]["full"], flops["forward_per_token"]["causal"]
    with plt.rc_context(STYLE):
        figure, axes = _axes(6.4, 0.6 + 0.5 * len(full))
        rows = range(len(full))
        for offset, values, label, colour in ((-0.2, full, "full attention", 0), (0.2, causal, "causal", 4)):
            places = [row + offset for row in rows]
            bars = axes.barh(
                places, [value / 1e9 for value in values.values()], 0.38, label=label, color=COLOURS[colour]
            )
            axes.bar_label(bars, [numbers.flops(value) for value in values.values()], padding=3, fontsize=8)
        axes.set_yticks(list(rows), list(full))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.14)
        axes.set_xlabel("forward GFLOPs a token")
        axes.set_title(f"FLOPs by component at {flops['sequence_length']:,} tokens")
        axes.legend(loc="lower right")
    return figure


def _one_bar(memory: dict[str, Any]) -> list[tuple[str, dict[str, int], int]]:
    setup = memory["setup"]
    words = (
        f"{setup['micro_batch']} x {setup['sequence_length']:,}\n{setup['sharding']} on {setup['num_ranks']}"
    )
    return [(words, memory["terms_bytes"], memory["outside_allocator_bytes"])]


def memory_figure(
    bars: list[tuple[str, dict[str, int], int]], gpu_bytes: int | None, label: str = "", gpu: str = "the GPU"
) -> Figure:
    """Stacked terms of each bar, the GPU's size as a line.

    Args:
        bars: (name, term -> bytes, bytes outside the allocator).
    """
    terms = list(dict.fromkeys(name for _, sizes, _ in bars for name, size in sizes.items() if size))
    with plt.rc_context(STYLE):
        figure, axes = _axes(3.4 + 1.0 * len(bars), 4.2)
        bottoms = [0.0] * len(bars)
        for term in [*terms, OUTSIDE]:
            heights = [
                (outside if term == OUTSIDE else sizes.get(term, 0)) / 2**30 for _, sizes, outside in bars
            ]
            if any(heights):
                colour = TERM_COLOURS[term]
                axes.bar([name for name, _, _ in bars], heights, 0.6, bottoms, label=term, color=colour)
            bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
        if gpu_bytes:
            axes.axhline(gpu_bytes / 2**30, color="black", linewidth=1, linestyle="--")
            axes.annotate(
                f"{gpu}: {gpu_bytes / 2**30:.0f} GiB", (0, gpu_bytes / 2**30), (2, 3),
                textcoords="offset points", xycoords=("axes fraction", "data"), fontsize=8,
            )  # fmt: skip
        axes.grid(axis="x", visible=False)
        axes.set_ylabel("GiB on one rank")
        axes.set_xlabel(label)
        axes.set_title("Memory by term")
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def isoflop_figure(curves: list[dict[str, Any]], law: str) -> Figure:
    """Loss against N, one curve a budget, its optimum marked."""
    with plt.rc_context(STYLE):
        figure, axes = _axes(6.4, 4.2)
        for index, curve in enumerate(curves):
            points, best = curve["points"], curve["best"]
            axes.plot(
                [point["parameters"] for point in points],
                [point["loss"] for point in points],
                color=COLOURS[index],
            )
            axes.plot(best["parameters"], best["loss"], "o", color=COLOURS[index])
            axes.annotate(
                f"{numbers.power(curve['flops'])} FLOPs", (points[-1]["parameters"], points[-1]["loss"]), (4, 0),
                textcoords="offset points", fontsize=8, va="center", color=COLOURS[index],
            )  # fmt: skip
            axes.annotate(
                f"{numbers.count(best['parameters'])}, {best['loss']:.3f}",
                (best["parameters"], best["loss"]), (0, -6), textcoords="offset points",
                fontsize=8, ha="center", va="top", path_effects=HALO,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(y=0.08)
        axes.set_xlabel("parameters")
        axes.set_ylabel("predicted loss, nats a token")
        axes.set_title(f"IsoFLOP curves and their optima ({law})")
    return figure


def loss_figure(curve: dict[str, Any], law: str) -> Figure:
    """Loss of one model against tokens, with the law's 95% interval where it has one."""
    points = curve["points"]
    tokens, losses = [point["tokens"] for point in points], [point["loss"] for point in points]
    with plt.rc_context(STYLE):
        figure, axes = _axes(6.4, 4.0)
        axes.plot(tokens, losses, color=COLOURS[0], label=f"{numbers.count(curve['parameters'])} parameters")
        if points[0]["half_width"] is not None:
            widths = [point["half_width"] for point in points]
            low = [loss - width for loss, width in zip(losses, widths, strict=True)]
            high = [loss + width for loss, width in zip(losses, widths, strict=True)]
            axes.fill_between(
                tokens, low, high, color=COLOURS[4], alpha=0.35, linewidth=0, label="95% of the law's fit"
            )
        axes.axvline(curve["tokens"], color="black", linewidth=1, linestyle="--")
        axes.annotate(
            f"the budget: {numbers.count(curve['tokens'])} tokens", (curve["tokens"], losses[0]), (5, -4),
            textcoords="offset points", fontsize=8, va="top",
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel("predicted loss, nats a token")
        axes.set_title(f"Loss against tokens ({law})")
        axes.legend(loc="lower left")
    return figure
