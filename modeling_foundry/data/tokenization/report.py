"""What a tokenized corpus came out as: counted for its index, printed, and named where a file gave nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..tokens.shards import ShardHeader
from .shard_task import said

# The shards of a split: path in the corpus and header.
Shards = list[tuple[str, ShardHeader]]


def counted(headers: list[ShardHeader]) -> dict[str, Any]:
    """Sums over the shards of a split: what went in, what came out, what gave nothing and why."""
    bad_rows: Counter[str] = Counter()
    for header in headers:
        bad_rows.update(header.source["bad_rows"])
    return {
        "files": len(headers),
        "documents": sum(header.num_documents for header in headers),
        "text_bytes": sum(header.source["text_bytes"] for header in headers),
        "tokens": sum(header.num_tokens for header in headers),
        "empty_files": sum(header.num_documents == 0 for header in headers),
        "damaged": [header.source["damaged"] for header in headers if header.source["damaged"]],
        "mismatches": [found for header in headers for found in header.source["mismatches"]],
        "bad_rows": dict(sorted(bad_rows.items())),
    }


def without_document(shards: Shards, most: int = 5) -> str:
    """The files that gave no document, each with its reason; of many the first."""
    empty = [header.source for _, header in shards if not header.num_documents]
    named = [f"{source['path']} ({said(source['bad_rows']) or 'no rows'})" for source in empty[:most]]
    return ", ".join(named) + (f" and {len(empty) - most:,} more" if len(empty) > most else "")


def print_report(
    console: Console, folder: Path, counts: dict[str, dict[str, Any]], splits: dict[str, Shards]
) -> None:
    """One small table of what was made, and what gave nothing."""
    table = Table(title=str(folder), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("")
    counts = dict(sorted(counts.items(), key=lambda item: (item[0] != "train", item[0])))
    for name in counts:
        table.add_column(name, justify="right")
    for key, label in (
        ("files", "files"), ("documents", "documents"), ("text_bytes", "bytes of text"), ("tokens", "tokens"),
    ):  # fmt: skip
        table.add_row(label, *(f"{count[key]:,}" for count in counts.values()))
    ratios = (f"{count['text_bytes'] / max(1, count['tokens']):.2f}" for count in counts.values())
    table.add_row("bytes per token", *ratios)
    console.print(table)
    for name, count in counts.items():
        if count["bad_rows"]:
            console.print(f"{name}: gave no document: {said(count['bad_rows'])}")
        if count["empty_files"]:
            console.print(
                f"{name}: {count['empty_files']:,} file{'s' * (count['empty_files'] != 1)} without a document: "
                f"{without_document(splits[name])}"
            )
        for damaged in count["damaged"]:
            console.print(f"{name}: kept up to the damage: {damaged}")
        if count["mismatches"]:
            console.print(
                f"{name}: the fast engine differed from the tokenizers library {len(count['mismatches'])} times; "
                "those files were made again by the library; --engine=reference --overwrite=true makes all so"
            )
