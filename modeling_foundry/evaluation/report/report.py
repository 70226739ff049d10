"""One HTML report with everything in it: scores, verdicts, pictures, answers, and how it was made."""

from __future__ import annotations

import json
from datetime import timedelta
from html import escape
from typing import Any

from ..stages import Stage
from .labels import BITS_PER_BYTE, VERDICT_SIGNS, bound, in_order, label_of, number
from .page import folded, page, picture, table
from .summary import ONE_MODEL, headline_comparisons, remarks, verdict_rows

NUM_SHOWN_ANSWERS = 8
SIDES = ("before", "after")
CLASS_OF_VERDICT = {"better": "better", "worse": "worse", "no difference": "even"}
ABOUT_ERRORS = (
    "± is one standard error, taken over items or, where they name their modules, over families of modules (the "
    "unit by which data were held out), because functions of one module are not independent. Where every item is a "
    "hit, or none is, the exact 95% bound stands in its place."
)
ABOUT_VERDICTS = (
    "Both models answer the same items and the difference is taken item by item. A difference is claimed "
    "only where its 95% interval excludes 0 and, for hits and misses, the exact sign test (McNemar) has "
    "p < 0.05; "
    "everywhere else the verdict is “no difference”. Intervals are not widened for the number of rows: about "
    "one true equality in twenty would still look like a difference."
)


def build_report(results: dict[str, Any], stages: list[Stage], figures: dict[str, bytes]) -> str:
    """The report as one HTML document.

    Args:
        results: content of ``results.json``.
        figures: file name -> PNG, as :func:`modeling_foundry.evaluation.report.figures.draw_figures` makes them.
    """
    title = f"{results['experiment']}: what was learned"
    bars = "Scores of every model; thin lines are 95% intervals."
    body = [
        f"<h1>{escape(title)}</h1>",
        _subtitle(results),
        _cards(results),
        "<h2>Scores</h2>",
        _scores(results),
        *(f'<p class="note">{escape(line)}</p>' for line in (*remarks(results), ABOUT_ERRORS)),
        _picture(figures, "scores.png", bars, bars),
        *_comparisons(results),
        *_compression(results, figures),
        *_training(stages, figures),
        *_answers(results),
        "<h2>How it was made</h2>",
        _stages(results, stages),
        _settings(results, stages),
    ]
    return page(title, [part for part in body if part])


def _subtitle(results: dict[str, Any]) -> str:
    last = list(results["models"].values())[-1]
    machine = results["machine"]
    parts = [
        f"{last['num_parameters']:,} parameters" if last.get("num_parameters") else "",
        f"measured {results['finished'][:10]}",
        f"commit {results['commit'][:12]}" if results.get("commit") else "",
        f"{machine.get('gpu') or machine['processor']}, {machine['cores']} cores",
    ]
    return f'<p class="soft">{escape(" · ".join(part for part in parts if part))}</p>'


def _verdict(verdict: str) -> str:
    return (
        f'<span class="verdict {CLASS_OF_VERDICT[verdict]}">{VERDICT_SIGNS[verdict]} {escape(verdict)}</span>'
    )


def _cards(results: dict[str, Any]) -> str:
    cards = []
    for row in headline_comparisons(results):
        score = results["scores"][row["metric"]]
        before, after = (number(score["models"][row[side]]["value"], score["is_share"]) for side in SIDES)
        cards.append(
            f'<div class="card"><div class="what">{escape(label_of(row["metric"]).title)}</div>'
            f'<div class="move">{before} → {after}</div>'
            f'<div class="what">{escape(row["before"])} → {escape(row["after"])}</div>'
            f"{_verdict(row['verdict'])}</div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _scores(results: dict[str, Any]) -> str:
    names = list(results["models"])
    rows = []
    for metric in in_order(results["scores"]):
        score, label = results["scores"][metric], label_of(metric)
        terms = "higher is better" if score["higher_is_better"] else "lower is better"
        if label.chance is not None:
            terms += f"; guessing: {100 * label.chance:.0f}%"
        title = f"{escape(label.title)}<br><small>{escape(label.meaning)} ({terms})</small>"
        cells = [_with_error(score["models"].get(name), score["is_share"]) for name in names]
        num_items = max(estimate["num_items"] for estimate in score["models"].values())
        rows.append([title, *cells, f"{num_items:,}"])
    return table(["", *map(escape, names), "items"], rows)


def _with_error(estimate: dict[str, Any] | None, is_share: bool) -> str:
    if estimate is None:
        return ""
    error = estimate["standard_error"]
    if error is None:
        return number(estimate["value"], is_share)
    exact = is_share and error == 0
    shown = escape(bound(estimate)) if exact else f"± {number(error, is_share)}"
    return f"{number(estimate['value'], is_share)}<br><small>{shown}</small>"


def _comparisons(results: dict[str, Any]) -> list[str]:
    if not results["comparisons"]:
        return [f'<p class="note">{escape(ONE_MODEL)}</p>']
    rows = [
        [escape(title), escape(stages), escape(numbers), _p(row["p_value"]), _verdict(verdict)]
        for row, (title, stages, verdict, numbers) in zip(
            results["comparisons"], verdict_rows(results), strict=True
        )
    ]
    header = ["", "stages", "difference (95% interval)", "p", "verdict"]
    return [
        "<h2>Did it really get better?</h2>",
        table(header, rows, text_columns=(0, 1, 4)),
        f'<p class="note">{escape(ABOUT_VERDICTS)}</p>',
    ]


def _p(p_value: float | None) -> str:
    if p_value is None:
        return ""
    return "&lt; 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _picture(figures: dict[str, bytes], name: str, description: str, caption: str = "") -> str:
    return picture(figures[name], description, caption) if name in figures else ""


def _compression(results: dict[str, Any], figures: dict[str, bytes]) -> list[str]:
    if BITS_PER_BYTE not in results["scores"]:
        return []
    context = results["context"]
    text = (
        f"The same {results['compression']['num_bytes']:,} bytes of {results['heldout_file']} for all, and these "
        "terms: gzip may look "
        "back 32 KiB, xz over everything that came before; both start knowing nothing. A model looks "
        "back at most "
        f"{context['max_positions']:,} tokens (about {context['num_bytes']:,.0f} bytes; half of that on "
        "average) and never into the document before, but it has read its training data; its own size is not "
        "counted."
    )
    return [
        "<h2>Against gzip and xz</h2>",
        f"<p>{escape(text)}</p>",
        _picture(figures, "bits_per_byte.png", "Bits per byte of the models, xz and gzip"),
    ]


def _training(stages: list[Stage], figures: dict[str, bytes]) -> list[str]:
    if "loss.png" not in figures:
        return []
    names = ", ".join(stage.name for stage in stages)
    return [
        "<h2>Training</h2>",
        _picture(figures, "loss.png", f"Training and held-out loss of {names}"),
        _picture(figures, "throughput.png", f"Tokens a second over the steps of {names}"),
    ]


def _answers(results: dict[str, Any]) -> list[str]:
    if not results["answers"]:
        return []
    shown = results["answers"][:NUM_SHOWN_ANSWERS]
    intro = (
        f"Greedy answers to the first {len(shown)} of {len(results['answers'])} held-out prompts, in the "
        "order the seed drew them: not a selection. “Cut” means that "
        f"{results['settings']['max_new_tokens']} tokens did not bring the model to an end of its own."
    )
    asked = f" They are those of {results['prompts_file']}." if "prompts_file" in results else ""
    return ["<h2>What it says</h2>", f"<p>{intro}{escape(asked)}</p>", *map(_answer, shown)]


def _answer(answer: dict[str, Any]) -> str:
    entries = [f"<dt>true</dt><dd>{escape(answer['truth'])}</dd>"]
    for name, said in answer["models"].items():
        css, word = ("better", "ended") if said["ended"] else ("worse", "cut")
        text = escape(said["text"]) or "<em>nothing</em>"
        entries.append(f'<dt>{escape(name)}</dt><dd>{text}<span class="badge {css}">{word}</span></dd>')
    return f'<div class="answer"><pre>{escape(answer["prompt"])}</pre><dl>{"".join(entries)}</dl></div>'


def _stages(results: dict[str, Any], stages: list[Stage]) -> str:
    rows = []
    for stage in stages:
        counts = [line.get("tokens") or line.get("num_tokens") for line in stage.log]
        tokens = next((count for count in reversed(counts) if count), None)
        rows.append(
            [
                escape(stage.name),
                f"{stage.complete['steps']:,}" if "steps" in stage.complete else "",
                f"{tokens:,.0f}" if tokens else "",
                duration(stage.complete.get("training_seconds")),
                _moment(stage.record.get("started", "")),
            ]
        )
    rows.append(["evaluate", "", "", duration(results["seconds"]["total"]), _moment(results["started"])])
    return table(["stage", "steps", "tokens", "time", "started (UTC)"], rows)


def duration(seconds: float | None) -> str:
    """Hours, minutes and seconds; empty where nobody counted."""
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _moment(timestamp: str) -> str:
    return escape(timestamp[:16].replace("T", " "))


def _settings(results: dict[str, Any], stages: list[Stage]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    models = [
        [escape(name), escape(model["folder"]), f"<code>{escape(model['weights_sha256'][:16])}</code>"]
        for name, model in results["models"].items()
    ]
    parts = [
        table(["model", "folder", "weights (SHA-256)"], models, text_columns=(0, 1, 2)),
        f'<p class="soft">{escape(versions)}</p>',
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
