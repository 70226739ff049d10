"""The books of a cleaning: read from the statistics, compared with the files, printed as one table."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...settings import FoundryError
from .decontamination import MIN_ITEM_WORDS, EvaluationIndex, load_index
from .settings import CleanSettings

REPORT_NAME = "decontamination.json"


READERS = ("jsonl", "parquet")


def close_books(
    folder: Path, settings: CleanSettings, statistics: dict[str, dict[str, int]]
) -> dict[str, Any]:
    """What ``clean.json`` says beside the settings; writes ``decontamination.json`` where there is one.

    Args:
        statistics: of every step: name -> label -> number.

    Raises:
        FoundryError: a count does not add up, or the files hold another number of documents.
    """
    read = _reading(statistics)
    steps = [_step(name, counts) for name, counts in statistics.items() if "in" in counts]
    files = files_of(folder)
    _check(folder, read, steps, files)
    if settings.decontaminate:
        report = _decontamination(folder, settings)
        write_atomically(folder / REPORT_NAME, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    left = steps[-1]["out"] if steps else read["out"]
    summary = {"rows": read["rows"], "malformed": read["malformed"], "documents": read["out"], "left": left}
    tasks = report["tasks"] if settings.decontaminate else {}
    return {"summary": summary, "steps": steps, "decontamination": tasks, "files": files}


def _reading(statistics: dict[str, dict[str, int]]) -> dict[str, Any]:
    rows, num_bytes = 0, 0
    malformed: dict[str, int] = {}
    for name in READERS:
        counts = statistics.get(name, {})
        rows, num_bytes = rows + counts.get("rows", 0), num_bytes + counts.get("text_bytes", 0)
        for label, number in counts.items():
            if label.startswith("malformed:"):
                reason = label.removeprefix("malformed:")
                malformed[reason] = malformed.get(reason, 0) + number
    out = {"documents": rows - sum(malformed.values()), "bytes": num_bytes}
    return {"rows": rows, "malformed": malformed, "out": out}


def _step(name: str, counts: dict[str, int]) -> dict[str, Any]:
    def amount(label: str) -> dict[str, int]:
        return {"documents": counts.get(label, 0), "bytes": counts.get(f"{label}_bytes", 0)}

    labels = [label for label in counts if label.startswith("removed:") and not label.endswith("_bytes")]
    removed = {label.removeprefix("removed:"): amount(label) for label in sorted(labels)}
    cut = amount("in")["bytes"] - amount("out")["bytes"] - sum(facts["bytes"] for facts in removed.values())
    return {"name": name, "in": amount("in"), "out": amount("out"), "removed": removed, "cut_bytes": cut}


def _check(folder: Path, read: dict[str, Any], steps: list[dict[str, Any]], files: dict[str, Any]) -> None:
    """Every document in is a document out or a document removed, in the statistics and in the files."""
    if not read["out"]["documents"]:
        why = ", ".join(f"{reason}: {number}" for reason, number in read["malformed"].items())
        raise FoundryError(
            f"{folder}: no row of the input is a document ({why or 'it has no rows'}); look at text_key"
        )
    before = read["out"]
    for step in steps:
        num_removed = sum(facts["documents"] for facts in step["removed"].values())
        _equal(folder, f"into {step['name']}", step["in"], before)
        _equal(folder, f"in {step['name']}", step["in"]["documents"], step["out"]["documents"] + num_removed)
        _equal(folder, f"in removed/{step['name']}", _rows_in(files, f"removed/{step['name']}/"), num_removed)
        if step["cut_bytes"] < 0:
            raise FoundryError(f"{folder}: {step['name']} put out more text than it took in")
        before = step["out"]
    _equal(
        folder, "in removed/malformed", _rows_in(files, "removed/malformed/"), sum(read["malformed"].values())
    )
    _equal(folder, "in documents", _rows_in(files, "documents/"), before["documents"])
    if not before["documents"]:
        reasons = {reason: facts["documents"] for step in steps for reason, facts in step["removed"].items()}
        why = ", ".join(f"{reason}: {number:,}" for reason, number in reasons.items())
        raise FoundryError(
            f"{folder}: no document is left of {read['out']['documents']:,} ({why}); they are in "
            f"{folder / 'removed'}; change filters or filter_options"
        )


def _equal(folder: Path, where: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise FoundryError(
            f"{folder}: the documents {where} do not add up: {found}, expected {expected}; "
            "did another program write there?  Clean again with --overwrite=true"
        )


def _rows_in(files: dict[str, Any], beginning: str) -> int:
    return sum(facts["rows"] for name, facts in files.items() if name.startswith(beginning))


def files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file of documents, kept and removed: its size, rows, and the SHA-256 of its uncompressed bytes.

    gzip notes the time in a file, so the compressed bytes of equal documents differ.
    """
    files = {}
    for path in sorted([*folder.glob("documents/*.gz"), *folder.glob("removed/*/*.gz")]):
        digest, num_rows = hashlib.sha256(), 0
        with gzip.open(path, "rb") as lines:
            for line in lines:
                digest.update(line)
                num_rows += 1
        facts = {"bytes": path.stat().st_size, "rows": num_rows, "text_sha256": digest.hexdigest()}
        files[path.relative_to(folder).as_posix()] = facts
    return files


def rows_of(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the files a step wrote."""
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rb") as lines:
            yield from map(json.loads, lines)


# ------------------------------------------------------------------------------------------ decontamination


def _decontamination(folder: Path, settings: CleanSettings) -> dict[str, Any]:
    index = load_index(str(folder / "work" / "evaluation_items.jsonl"), settings.ngram_size)
    removed = rows_of(folder / "removed" / "decontamination")
    cut = rows_of(folder / "removed" / "decontamination_passages")
    report = contamination_report(index, removed, cut)
    return {"ngram_size": settings.ngram_size, "mode": settings.decontaminate_mode, **report}


def contamination_report(
    index: EvaluationIndex, removed: Iterable[dict[str, Any]], cut: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """What ``decontamination.json`` says: each document that held an item, and per task how many items were held.

    Args:
        removed, cut: rows of the writers of :class:`~.decontamination.NGramFilter`.
    """
    tasks: dict[str, dict[str, int]] = {}
    for item in index.items:
        facts = tasks.setdefault(item.task, {"items": 0, "uncheckable": 0, "matched": 0, "documents": 0})
        facts["items"] += 1
    for place in index.uncheckable:
        tasks[index.items[place].task]["uncheckable"] += 1
    documents, matched = [], set()
    for action, rows in (("removed", removed), ("cut", cut)):
        for row in rows:
            note = row["metadata"]["contamination"]
            matched.update(note["items"])
            for task in {index.items[place].task for place in note["items"]}:
                tasks[task]["documents"] += 1
            documents.append(
                {
                    "action": action,
                    "source": row["metadata"]["clean_source"],
                    "id": row["id"],
                    "num_items": note["num_items"],
                    "matches": note["matches"],
                }
            )
    for place in matched:
        tasks[index.items[place].task]["matched"] += 1
    return {"min_item_words": MIN_ITEM_WORDS, "tasks": tasks, "documents": documents}


# ------------------------------------------------------------------------------------------------ table


def print_books(folder: Path, manifest: dict[str, Any]) -> None:
    """One small table: what was read, what each step took away and why, what is left."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    table.add_column("")
    for column in ("documents", "bytes"):
        table.add_column(column, justify="right")
    summary = manifest["summary"]
    table.add_row("rows read", f"{summary['rows']:,}", "")
    for reason, number in sorted(summary["malformed"].items()):
        table.add_row(f"  malformed: {reason}", f"-{number:,}", "")
    table.add_row("documents", *_amount(summary["documents"]), end_section=not manifest["steps"])
    for step in manifest["steps"]:
        table.add_row(step["name"], "" if step["removed"] else "0", "")
        for reason, facts in step["removed"].items():
            table.add_row(f"  {reason}", *(f"-{text}" for text in _amount(facts)))
        if step["cut_bytes"]:
            table.add_row("  cut out of documents", "", f"-{step['cut_bytes']:,}")
    table.add_row("left", *_amount(summary["left"]))
    console = Console(highlight=False, markup=False)
    console.print(str(folder), soft_wrap=True)
    console.print(table)
    for task, facts in manifest["decontamination"].items():
        console.print(
            f"{task}: {facts['matched']:,} of {facts['items']:,} items in {facts['documents']:,} documents; "
            f"{facts['uncheckable']:,} items too short to look for",
            soft_wrap=True,
        )


def _amount(facts: dict[str, int]) -> tuple[str, str]:
    return f"{facts['documents']:,}", f"{facts['bytes']:,}"
