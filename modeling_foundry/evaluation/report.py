"""One HTML report with everything in it, and the same tables as Markdown."""

from __future__ import annotations

import json
from datetime import timedelta
from html import escape
from typing import Any

from .labels import (
    BITS_PER_BYTE,
    CHOICE,
    PREFERENCE,
    STOP_RATE,
    VERDICT_SIGNS,
    in_order,
    label_of,
    number,
    points,
    sentence,
)
from .page import folded, page, picture, table
from .stages import Stage

# What the cards at the top show, and which of its comparisons: the first or the last in the order of training.
HEADLINES = ((BITS_PER_BYTE, 0), (CHOICE, 0), (STOP_RATE, 0), (PREFERENCE, -1))
NUM_SHOWN_ANSWERS = 8


def build_report(results: dict[str, Any], stages: list[Stage], figures: dict[str, bytes]) -> str:
    """The report as one HTML document.

    Args:
        results: content of ``results.json``.
        figures: file name -> PNG, as :func:`modeling_foundry.evaluation.figures.draw_figures` makes them.
    """
    title = f"{results['experiment']}: what was learned"
    return page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            _subtitle(results),
            _cards(results),
            "<h2>Scores</h2>",
            _scores(results),
            _picture(figures, "scores.png", "Scores of every model", "Bars end at the score; the thin lines are 95 % intervals."),
            "<h2>Did it really get better?</h2>",
            _comparisons(results),
            *_compression(results, figures),
            *_training(stages, figures),
            *_answers(results),
            "<h2>How it was made</h2>",
            _stages(results, stages),
            _settings(results, stages),
        ],
    )  # fmt: skip


def _subtitle(results: dict[str, Any]) -> str:
    last = list(results["models"].values())[-1]
    parts = [
        f"{last['num_parameters']:,} parameters" if last.get("num_parameters") else "",
        f"measured {results['finished'][:10]}",
        f"commit {results['commit'][:12]}" if results.get("commit") else "",
        f"{results['machine'].get('gpu') or results['machine']['processor']}, {results['machine']['cores']} cores",
    ]
    return f'<p class="soft">{escape(" · ".join(part for part in parts if part))}</p>'


def headline_comparisons(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons that say in short whether each stage did its work."""
    chosen = []
    for metric, place in HEADLINES:
        found = [row for row in results["comparisons"] if row["metric"] == metric]
        if found:
            chosen.append(found[place])
    return chosen


def _cards(results: dict[str, Any]) -> str:
    cards = []
    for row in headline_comparisons(results):
        score = results["scores"][row["metric"]]
        before, after = (score["models"][row[side]]["value"] for side in ("before", "after"))
        css = {"better": "better", "worse": "worse"}.get(row["verdict"], "even")
        cards.append(
            f'<div class="card"><div class="what">{escape(label_of(row["metric"]).title)}</div>'
            f'<div class="move">{number(before, score["is_share"])} → {number(after, score["is_share"])}</div>'
            f'<div class="what">{escape(row["before"])} → {escape(row["after"])}</div>'
            f'<div class="verdict {css}">{VERDICT_SIGNS[row["verdict"]]} {escape(row["verdict"])}</div></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _scores(results: dict[str, Any]) -> str:
    names = list(results["models"])
    rows = []
    for metric in in_order(results["scores"]):
        score, label = results["scores"][metric], label_of(metric)
        chance = f"; guessing: {label.chance:.0%}".replace("%", " %") if label.chance else ""
        better = "higher is better" if score["higher_is_better"] else "lower is better"
        cells = [f"{escape(label.title)}<br><small>{escape(label.meaning)} ({better}{chance})</small>"]
        for name in names:
            estimate = score["models"].get(name)
            cells.append(_with_error(estimate, score["is_share"]) if estimate else "")
        cells.append(str(max(estimate["num_items"] for estimate in score["models"].values())))
        rows.append(cells)
    note = (
        '<p class="note">± is one standard error, taken over families of modules (the unit by which data were held '
        "out), because functions of one module are not independent.</p>"
    )
    return table(["", *map(escape, names), "items"], rows) + note


def _with_error(estimate: dict[str, Any], is_share: bool) -> str:
    error = estimate["standard_error"]
    shown = "" if error is None else f" <small>± {number(error, is_share)}</small>"
    return number(estimate["value"], is_share) + shown


def _comparisons(results: dict[str, Any]) -> str:
    rows = []
    for row in results["comparisons"]:
        is_share = results["scores"][row["metric"]]["is_share"]
        css = {"better": "better", "worse": "worse"}.get(row["verdict"], "even")
        rows.append(
            [
                escape(label_of(row["metric"]).title),
                f"{escape(row['before'])} → {escape(row['after'])}",
                points(row["difference"], is_share),
                "–" if row["standard_error"] is None else points(row["standard_error"], is_share).lstrip("+"),
                f"{points(row['low'], is_share)} … {points(row['high'], is_share)}",
                "" if row["p_value"] is None else p_text(row["p_value"]),
                f'<span class="verdict {css}">{VERDICT_SIGNS[row["verdict"]]} {row["verdict"]}</span>',
            ]
        )
    note = (
        '<p class="note">Both models answer the same items and the difference is taken item by item. A difference is '
        "claimed only where its 95 % interval excludes 0 and, for hits and misses, the exact sign test (McNemar) has "
        "p &lt; 0.05; everywhere else the verdict is “no difference”. With this many rows about one in twenty "
        "true equalities would still look like a difference.</p>"
    )
    header = ["", "stages", "difference", "± error", "95 % interval", "p", "verdict"]
    return table(header, rows, text_columns=(0, 1)) + note


def p_text(p_value: float) -> str:
    """An exact p, as people write it."""
    return "&lt; 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _picture(figures: dict[str, bytes], name: str, description: str, caption: str = "") -> str:
    return picture(figures[name], description, caption) if name in figures else ""


def _compression(results: dict[str, Any], figures: dict[str, bytes]) -> list[str]:
    if BITS_PER_BYTE not in results["scores"]:
        return []
    compression, context = results["compression"], results["context"]
    text = (
        f"The same {compression['num_bytes']:,} bytes for all. The comparison is honest only with its terms: gzip may "
        "look back 32 KiB and xz over everything that came before (64 MiB), and both start knowing nothing. A model "
        f"looks back at most {context['max_positions']:,} tokens (about {context['num_bytes']:,.0f} bytes, on average "
        "half of that), never over the beginning of a file, but it has read the training modules before; its own size "
        "is not counted."
    )
    return [
        "<h2>Against gzip and xz</h2>",
        f"<p>{text}</p>",
        _picture(figures, "bits_per_byte.png", "Bits per byte of the models, xz and gzip"),
    ]


def _training(stages: list[Stage], figures: dict[str, bytes]) -> list[str]:
    if "loss.png" not in figures:
        return []
    names = ", ".join(stage.name for stage in stages)
    return [
        "<h2>Training</h2>",
        _picture(figures, "loss.png", f"Training and held-out loss of {names}"),
        _picture(figures, "throughput.png", "Tokens a second over the steps of pretraining"),
    ]


def _answers(results: dict[str, Any]) -> list[str]:
    if not results["answers"]:
        return []
    shown = results["answers"][:NUM_SHOWN_ANSWERS]
    intro = (
        f"Greedy answers to the first {len(shown)} of {len(results['answers'])} held-out prompts in the order the seed "
        f"drew them: not a selection. <em>Cut</em> means that {results['settings']['max_new_tokens']} tokens did not "
        "bring the model to an end of its own."
    )
    return ["<h2>What it says</h2>", f"<p>{intro}</p>", *map(_answer, shown)]


def _answer(answer: dict[str, Any]) -> str:
    entries = [f"<dt>true</dt><dd>{escape(answer['truth'])}</dd>"]
    for name, said in answer["models"].items():
        css, word = ("better", "ended") if said["ended"] else ("worse", "cut")
        entries.append(
            f"<dt>{escape(name)}</dt><dd>{escape(said['text']) or '<em>nothing</em>'}"
            f'<span class="badge {css}">{word}</span></dd>'
        )
    return f'<div class="answer"><pre>{escape(answer["prompt"])}</pre><dl>{"".join(entries)}</dl></div>'


def _stages(results: dict[str, Any], stages: list[Stage]) -> str:
    rows = []
    for stage in stages:
        last = next((line for line in reversed(stage.log) if "tokens" in line), {})
        rows.append(
            [
                escape(stage.name),
                f"{stage.complete['steps']:,}" if "steps" in stage.complete else "",
                f"{last['tokens']:,.0f}" if last.get("tokens") else "",
                duration(stage.complete.get("training_seconds")),
                escape(str(stage.record.get("started", ""))[:16].replace("T", " ")),
            ]
        )
    rows.append(
        [
            "evaluate",
            "",
            "",
            duration(results["seconds"]["total"]),
            escape(results["started"][:16].replace("T", " ")),
        ]
    )
    return table(["stage", "steps", "tokens", "time", "started (UTC)"], rows)


def duration(seconds: float | None) -> str:
    """Minutes and seconds."""
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _settings(results: dict[str, Any], stages: list[Stage]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    models = [
        [escape(name), escape(model["folder"]), f"<code>{escape(model['weights_sha256'][:16])}</code>"]
        for name, model in results["models"].items()
    ]
    parts = [
        f'<p class="soft">{escape(versions)}</p>',
        table(["model", "folder", "weights (SHA-256)"], models, text_columns=(0, 1, 2)),
        folded("settings of the evaluation", _as_json(results["settings"])),
        folded("items that were measured", _as_json(results["items"])),
    ]
    parts += [
        folded(f"settings of {stage.name}", _as_json(stage.record["settings"]))
        for stage in stages
        if "settings" in stage.record
    ]
    return "".join(parts)


def _as_json(value: Any) -> str:
    return f"<pre>{escape(json.dumps(value, indent=1))}</pre>"


def build_markdown(results: dict[str, Any]) -> str:
    """Scores and verdicts as Markdown, for the terminal and for ``results.md``."""
    names = list(results["models"])
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for metric in in_order(results["scores"]):
        score = results["scores"][metric]
        cells = []
        for name in names:
            estimate = score["models"].get(name)
            cells.append(_with_error_plain(estimate, score["is_share"]) if estimate else "")
        lines.append(f"| {label_of(metric).title} | " + " | ".join(cells) + " |")
    if BITS_PER_BYTE in results["scores"]:
        compression = results["compression"]
        lines += [
            "",
            f"On the same {compression['num_bytes']:,} bytes: xz -9e {compression['xz_bits_per_byte']:.3f} and "
            f"gzip -9 {compression['gzip_bits_per_byte']:.3f} bits per byte.",
        ]
    lines += ["", "| | verdict |", "|---|---|"]
    for row in results["comparisons"]:
        is_share = results["scores"][row["metric"]]["is_share"]
        lines.append(
            f"| {label_of(row['metric']).title} | {VERDICT_SIGNS[row['verdict']]} {sentence(row, is_share)} |"
        )
    return "\n".join(lines) + "\n"


def _with_error_plain(estimate: dict[str, Any], is_share: bool) -> str:
    error = estimate["standard_error"]
    return number(estimate["value"], is_share) + ("" if error is None else f" ± {number(error, is_share)}")
