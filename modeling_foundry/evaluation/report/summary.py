"""Scores and verdicts in short: Markdown for ``results.md``, tables and a conversation for the terminal."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.markup import escape

from .labels import (
    BITS_PER_BYTE,
    PREFERENCE,
    STOP_RATE,
    TOKEN_F1,
    VERDICT_SIGNS,
    difference,
    in_order,
    label_of,
    with_error,
)

# The comparisons that say in short whether each stage did its work, by their place in the order of training.
HEADLINES = ((BITS_PER_BYTE, 0), (STOP_RATE, 0), (TOKEN_F1, 0), (PREFERENCE, -1))
NUM_TURNS = 3
RULE_OF_VERDICTS = (
    "Better or worse: the interval excludes 0 and, for hits and misses, the exact sign test has p < 0.05 too."
)
ONE_MODEL = "No two models were measured on the same, so there is nothing to compare."
STYLE_OF_VERDICT = {"better": "green", "worse": "red", "no difference": "dim"}


def headline_comparisons(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Pretraining against the random start, SFT against base, DPO against SFT, each where it aims."""
    chosen = []
    for metric, place in HEADLINES:
        found = [row for row in results["comparisons"] if row["metric"] == metric]
        if found:
            chosen.append(found[place])
    return chosen


def score_rows(results: dict[str, Any]) -> list[list[str]]:
    """A row a metric: its title and every model's score with its standard error."""
    rows = []
    for metric in in_order(results["scores"]):
        score = results["scores"][metric]
        found = [score["models"].get(name) for name in results["models"]]
        cells = [with_error(one, score["is_share"]) if one else "" for one in found]
        rows.append([label_of(metric).title, *cells])
    return rows


def verdict_rows(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Metric, the two models, verdict, and the difference with its interval, of every comparison."""
    rows, previous = [], None
    for row in results["comparisons"]:
        metric = row["metric"]
        rows.append(
            (
                "" if metric == previous else label_of(metric).title,
                f"{row['before']} → {row['after']}",
                row["verdict"],
                difference(row, results["scores"][metric]["is_share"]),
            )
        )
        previous = metric
    return rows


def compression_line(results: dict[str, Any]) -> str:
    """What xz and gzip reach, in one line; empty where bits per byte were not measured."""
    if "compression" not in results:
        return ""
    compression = results["compression"]
    xz, gz = (compression[f"{name}_bits_per_byte"] for name in ("xz", "gzip"))
    size = compression["num_bytes"]
    return f"On the same {size:,} bytes, xz -9e needs {xz:.3f} and gzip -9 {gz:.3f} bits per byte."


def remarks(results: dict[str, Any]) -> list[str]:
    """What a reader must know beside the scores: items that were not measured, and what is no mean over items.

    No file is named: a model's card prints this for others.
    """
    lines, left_out = [], results.get("left_out", [])  # a receipt of before has none
    for task, num_items in Counter(one["task"] for one in left_out).items():
        first = next(one for one in left_out if one["task"] == task)
        kept = f"{num_items:,} of its items" if num_items > 1 else "one of its items"
        lines.append(f"{task}: {kept} left out for all models, the first because of {first['reason']}.")
    if names := results.get("not_compared"):
        lines.append(f"Not shown, because they are no means over items: {', '.join(names)}.")
    return lines


def build_markdown(results: dict[str, Any]) -> str:
    """Scores and verdicts as Markdown tables."""
    parts = [_markdown_table(list(results["models"]), score_rows(results), "---:|")]
    parts += [line for line in (compression_line(results), *remarks(results)) if line]
    if rows := verdict_rows(results):
        signed = [
            [title, stages, f"{VERDICT_SIGNS[verdict]} {verdict}", numbers]
            for title, stages, verdict, numbers in rows
        ]
        header = ["stages", "verdict", "paired difference (95% interval)"]
        parts += [_markdown_table(header, signed, "---|"), RULE_OF_VERDICTS]
    else:
        parts.append(ONE_MODEL)
    return "\n\n".join(parts) + "\n"


def _markdown_table(header: list[str], rows: list[list[str]], rule: str) -> str:
    """A table whose first column has no name."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| | " + " | ".join(header) + " |", "|---|" + rule * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])


def print_results(results: dict[str, Any], console: Any) -> None:
    """The same tables in the terminal."""
    scores = _table("Held-out scores ± standard error", "")
    for name in results["models"]:
        scores.add_column(escape(name), justify="right", no_wrap=True)
    for row in score_rows(results):
        scores.add_row(*map(escape, row))
    console.print(scores)
    for line in (compression_line(results), *remarks(results)):
        console.print(line, style="dim", markup=False)
    console.print()
    if not results["comparisons"]:
        console.print(ONE_MODEL, style="dim")
        return
    verdicts = _table("Did it really get better?", "", "stages", "verdict", "paired (95% interval)", gap=1)
    for title, stages, verdict, numbers in verdict_rows(results):
        colour = STYLE_OF_VERDICT[verdict]
        shown = f"[{colour}]{VERDICT_SIGNS[verdict]} {verdict}[/{colour}]"
        verdicts.add_row(escape(title), escape(stages), shown, numbers)
    console.print(verdicts)
    console.print(f"[dim]{RULE_OF_VERDICTS}[/dim]")


def _table(title: str, *header: str, gap: int = 2) -> Any:
    """Without boxes, narrow enough for 80 columns."""
    from rich.table import Table

    return Table(
        *header,
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        pad_edge=False,
        padding=(0, gap, 0, 0),
    )


def print_conversation(results: dict[str, Any], console: Any) -> None:
    """The last model's answers to the first held-out prompts the seed drew."""
    from rich.padding import Padding
    from rich.text import Text

    if not results["answers"]:
        return
    name = list(results["answers"][0]["models"])[-1]
    console.print(f"[bold]A chat with {escape(name)}[/bold] (held-out questions, greedy, not selected)")
    for answer in results["answers"][:NUM_TURNS]:
        said = answer["models"][name]
        ending = "" if said["ended"] else " … (cut)"
        console.print(Padding(Text(answer["prompt"], style="cyan"), (1, 0, 0, 2)))
        console.print(Padding(Text(said["text"] + ending, style="bold"), (0, 0, 0, 4)))
        console.print(Padding(Text(f"true: {answer['truth']}", style="dim"), (0, 0, 0, 4)))
    console.print()
