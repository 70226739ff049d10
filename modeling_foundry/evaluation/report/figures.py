"""The pictures of the report: one message each, colours that colour-blind readers can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

from ..stages import Stage
from .labels import BITS_PER_BYTE, CHOICE, MARGIN, PREFERENCE, in_order, label_of, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008, "Color Universal Design".
GREY, BLUE, ORANGE, GREEN, VERMILION, PURPLE = (
    "#8a8f98",
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION)
INK, FAINT = "#1f2430", "#d9dce1"
DOTS_PER_INCH = 160
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 14,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#eceef1",
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}


def draw_figures(results: dict[str, Any], stages: list[Stage]) -> dict[str, bytes]:
    """File name -> PNG of every picture there is something to draw for."""
    pretrain = next((stage for stage in stages if stage.series("tokens_per_second")[0]), None)
    figures: dict[str, bytes] = {}
    if any(stage.series("loss")[0] for stage in stages):
        figures["loss.png"] = _png(lambda: draw_losses(stages))
    if pretrain is not None:
        figures["throughput.png"] = _png(lambda: draw_throughput(pretrain))
    if BITS_PER_BYTE in results["scores"]:
        figures["bits_per_byte.png"] = _png(lambda: draw_bits_per_byte(results))
    if drawn_metrics(results):
        figures["scores.png"] = _png(lambda: draw_scores(results))
    return figures


def _png(draw: Callable[[], Figure]) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        figure = draw()
        picture = BytesIO()
        figure.savefig(picture, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    return picture.getvalue()


def _figure(
    num_columns: int = 1, num_rows: int = 1, width: float = 9.0, height: float = 4.2
) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(width, height), layout=engine, facecolor="white")
    axes = figure.subplots(num_rows, num_columns, squeeze=False)
    return figure, axes.flatten()


def colours_of(results: dict[str, Any]) -> dict[str, str]:
    """Model -> colour: grey for random weights, for the others one each, in order and round again."""
    untrained = results.get("settings", {}).get("untrained", [])
    trained = [name for name in results["models"] if name not in untrained]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(trained)}
    return {name: colours.get(name, GREY) for name in results["models"]}


def draw_losses(stages: list[Stage]) -> Figure:
    """Training loss with the held-out points, a panel a stage."""
    shown = [stage for stage in stages if stage.series("loss")[0]]
    figure, axes = _figure(len(shown), width=max(9.0, 4.2 * len(shown)), height=3.9)
    for axis, stage, colour in zip(axes, shown, cycle(COLOURS), strict=False):
        steps, losses = stage.series("loss")
        axis.plot(steps, losses, color=colour, linewidth=1.8, label="training")
        held_out = stage.series("eval_loss")
        if held_out[0]:
            axis.plot(*held_out, color=INK, marker="o", markersize=5, linestyle="none", label="held-out")
            away = 9 if held_out[1][-1] > losses[-1] else -16  # from the line
            axis.annotate(
                f"{held_out[1][-1]:.2f}", (held_out[0][-1], held_out[1][-1]), xytext=(-4, away),
                textcoords="offset points", ha="right", fontsize=10,
            )  # fmt: skip
        axis.set_title(stage.name)
        _whole_steps(axis)
        is_preference = bool(stage.series("rewards/margins")[0])
        axis.set_ylabel("loss (nats)" if is_preference else "loss (nats a token)")
        axis.margins(y=0.15)  # room for the figure beside the last point
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)
    return figure


def _whole_steps(axis: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))


def draw_throughput(stage: Stage) -> Figure:
    """Tokens a second over the steps, with their median."""
    from statistics import median

    steps, rates = stage.series("tokens_per_second")
    figure, (axis,) = _figure(height=3.2)
    axis.plot(steps, rates, color=BLUE, linewidth=1.6)
    middle = median(rates)
    axis.axhline(middle, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axis.set_ylim(0, 1.12 * max(rates))
    axis.set_title(f"{stage.name}: {middle:,.0f} tokens a second (median; evaluation and saving left out)")
    _whole_steps(axis)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure


def draw_bits_per_byte(results: dict[str, Any]) -> Figure:
    """Bits per byte of the models and of gzip and xz on the same bytes, lowest is best."""
    scores = results["scores"][BITS_PER_BYTE]["models"]
    compression = results["compression"]
    colours = colours_of(results)
    rows = [(name, score["value"], _reach(score), colours[name]) for name, score in scores.items()]
    rows += [
        ("xz -9e", compression["xz_bits_per_byte"], None, FAINT),
        ("gzip -9", compression["gzip_bits_per_byte"], None, FAINT),
    ]
    figure, (axis,) = _figure(height=0.9 + 0.5 * len(rows))
    for place, (_, value, reach, colour) in enumerate(rows):
        axis.barh(place, value, color=colour, height=0.66, xerr=reach, error_kw=ERROR_BAR)
        right = value + (reach[1][0] if reach else 0)
        axis.annotate(f"{value:.2f}", (right, place), xytext=(6, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    axis.invert_yaxis()
    axis.grid(visible=False)
    axis.set_xlim(0, 1.1 * max(row[1] + (row[2][1][0] if row[2] else 0) for row in rows))
    axis.set_title("Bits per byte of held-out text (lower is better)")
    return figure


ERROR_BAR = {"ecolor": INK, "elinewidth": 1.4, "capsize": 4, "capthick": 1.4}


def _reach(estimate: dict[str, Any]) -> list[list[float]] | None:
    """Distances down and up to the ends of the 95% interval, as matplotlib wants them."""
    if estimate["low"] is None:
        return None
    return [[max(0.0, estimate["value"] - estimate["low"])], [max(0.0, estimate["high"] - estimate["value"])]]


def drawn_metrics(results: dict[str, Any]) -> list[str]:
    """What the bars show: everything but bits per byte, which has its own picture, and variants of a bar."""
    variants = (BITS_PER_BYTE, MARGIN, f"{CHOICE}_norm", f"{PREFERENCE}_norm")
    return in_order(set(results["scores"]) - set(variants))


def draw_scores(results: dict[str, Any]) -> Figure:
    """A panel a metric, a bar a model, with 95% intervals and the level of guessing."""
    metrics = drawn_metrics(results)
    num_columns = len(metrics) if len(metrics) <= 4 else 3
    num_rows = -(-len(metrics) // num_columns)
    width = 12.0 if num_columns > 2 else 3.7 * max(2, num_columns)
    figure, axes = _figure(num_columns, num_rows, width=width, height=3.6 * num_rows)
    colours = colours_of(results)
    for axis, metric in zip(axes, metrics, strict=False):
        _draw_panel(axis, results["scores"][metric], colours, metric)
    for axis in axes[len(metrics) :]:
        axis.set_visible(False)
    return figure


def _draw_panel(axis: Axes, score: dict[str, Any], colours: dict[str, str], metric: str) -> None:
    is_share = score["is_share"]
    scale = 100 if is_share else 1
    top = max(estimate["high"] or estimate["value"] for estimate in score["models"].values())
    for place, (name, estimate) in enumerate(score["models"].items()):
        reach = _reach(estimate)
        scaled = [[scale * side[0]] for side in reach] if reach else None
        axis.bar(
            place, scale * estimate["value"], color=colours[name], width=0.66,
            yerr=scaled, error_kw=ERROR_BAR,
        )  # fmt: skip
        height = scale * (estimate["high"] if reach else estimate["value"])
        axis.annotate(
            number(estimate["value"], is_share), (place, height), xytext=(0, 4), textcoords="offset points",
            ha="center", fontsize=10,
        )  # fmt: skip
    label = label_of(metric)
    if label.chance is not None:
        axis.axhline(scale * label.chance, color=VERMILION, linewidth=1.2, linestyle=(0, (4, 3)))
        axis.annotate(
            "guessing", (1, scale * label.chance), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", color=VERMILION, fontsize=9,
        )  # fmt: skip
        axis.set_xlim(-0.6, len(score["models"]) + 0.25)  # room for the word beside the bars
    axis.set_xticks(range(len(score["models"])), list(score["models"]))
    axis.set_ylim(0, scale * (min(1.12, 1.18 * top) if is_share else 1.18 * top) or 1)
    axis.set_title(f"{label.title}{' (%)' if is_share else ''}", fontsize=11)
