"""The training panels as pictures: one run, or several on shared axes; light and dark."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from ...files import write_atomically
from ...settings import FoundryError
from .panels import (
    THEMES,
    Theme,
    draw_data_wait,
    draw_gradients,
    draw_learning_rate,
    draw_loss,
    draw_memory,
    draw_mfu,
    draw_speed,
    draw_time,
    look,
)
from .runs import Axis, Run, short_count, title_of

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

AXIS_LABEL = {"tokens": "tokens trained on", "steps": "optimizer steps", "hours": "hours of training"}


def draw_runs(runs: list[Run], folder: str, axis: Axis, themes: Sequence[str]) -> list[Path]:
    """One picture a theme; returns their paths.

    Raises:
        FoundryError: the folder cannot be written.
    """
    name = "training" if len(runs) == 1 else "comparison"
    return [
        save(figure_of(runs, axis, THEMES[theme]), Path(folder) / f"{name}_{theme}.png") for theme in themes
    ]


def save(figure: Figure, path: Path) -> Path:
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    plt.close(figure)
    try:
        write_atomically(path, content.getvalue())
    except OSError as error:
        raise FoundryError(f"output_dir: cannot write {path} ({error.strerror})") from error
    return path


def style(theme: Theme) -> dict[Any, Any]:
    return {
        "figure.facecolor": theme.background, "axes.facecolor": theme.background, "text.color": theme.ink,
        "axes.labelcolor": theme.ink, "xtick.color": theme.ink, "ytick.color": theme.ink,
        "axes.edgecolor": theme.faint, "grid.color": theme.faint, "axes.grid": True, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left",
        "axes.titlesize": 11, "axes.titleweight": "bold", "font.size": 9.5, "legend.frameon": False,
        "legend.labelcolor": theme.ink, "xtick.major.size": 0, "ytick.major.size": 0, "figure.dpi": 150,
    }  # fmt: skip


def figure_of(runs: list[Run], axis: Axis, theme: Theme) -> Figure:
    """Eight panels: loss, learning rate, gradient norm, speed, MFU, memory, data wait, time."""
    with plt.rc_context(style(theme)):
        engine = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
        figure, grid = plt.subplots(4, 2, figsize=(11.5, 12.5), layout=engine)
        panels = grid.flatten()
        drawers = (
            draw_loss, draw_learning_rate, draw_gradients, draw_speed, draw_mfu, draw_memory, draw_data_wait,
        )  # fmt: skip
        for panel, draw in zip(panels, drawers, strict=False):
            draw(panel, runs, axis, theme)
            _finish(panel, runs, axis, theme)
        draw_time(panels[7], runs, theme)
        if len(runs) == 1:
            figure.suptitle(title_of(runs[0]), x=0.01, ha="left", fontsize=13, fontweight="bold")
        else:
            handles = [plt.Line2D([], [], **look(theme, place), linewidth=2) for place in range(len(runs))]
            figure.legend(
                handles, [run.name for run in runs], loc="outside upper left", ncols=min(4, len(runs))
            )
    return figure


def _finish(panel: Axes, runs: list[Run], axis: Axis, theme: Theme) -> None:
    panel.set_xlabel(AXIS_LABEL[axis])
    panel.margins(x=0.02)
    if axis == "tokens":
        panel.xaxis.set_major_formatter(lambda value, _: short_count(value))
    if len(runs) == 1:
        for place in runs[0].resumes(axis):
            panel.axvline(place, color=theme.ink, alpha=0.45, linewidth=0.8, linestyle=(0, (2, 3)))
