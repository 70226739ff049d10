"""``plot``: the panels as pictures, the same in figures as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from .runs import Run, duration, read_runs, short_count

if TYPE_CHECKING:
    from .settings import PlotSettings

GIB = 2**-30


def plot(settings: PlotSettings) -> None:
    """Draw and print.

    Raises:
        FoundryError: a run without a log, or a folder that cannot be written.
    """
    from .figure import draw_runs

    runs = read_runs(settings.runs, settings.names)
    console = Console(highlight=False, markup=False)
    console.print(table_of(runs))
    themes = ["light", "dark"] if settings.theme == "both" else [settings.theme]
    for path in draw_runs(runs, str(settings.folder), settings.against, themes):
        console.print(f"drew {path}", soft_wrap=True)


def table_of(runs: list[Run]) -> Table:
    """A column a run; a dash is what a run did not measure."""
    table = Table(box=None, header_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(run.name, justify="right")
    summaries = [run.summary() for run in runs]
    for words, name, form in ROWS:
        values = [summary.get(name) for summary in summaries]
        if any(value is not None for value in values):
            table.add_row(words, *("–" if value is None else form(value) for value in values))
    return table


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}%"


ROWS: list[tuple[str, str, Any]] = [
    ("steps", "final_step", "{:,}".format),
    ("tokens", "tokens", short_count),
    ("training loss, last line", "final_train_loss", "{:.4f}".format),
    ("held-out loss, last", "final_eval_loss", "{:.4f}".format),
    ("held-out loss, best", "best_eval_loss", "{:.4f}".format),
    ("tokens/s, median", "median_tokens_per_second", "{:,.0f}".format),
    ("MFU, median, full attention", "median_mfu", _percent),
    ("MFU, median, causal", "median_mfu_causal", _percent),
    ("GPU memory, peak", "memory_peak_bytes", lambda value: f"{value * GIB:.1f} GiB"),
    ("step, median", "median_step_seconds", lambda value: f"{value:.3f} s"),
    ("data wait a step, median", "median_data_wait_seconds", lambda value: f"{1000 * value:.1f} ms"),
    ("training", "training_seconds", duration),
    ("evaluation", "evaluation_seconds", duration),
    ("checkpoints", "checkpoint_seconds", duration),
    ("resumed, times", "num_resumes", "{}".format),
]
