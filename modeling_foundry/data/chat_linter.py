"""What goes wrong silently between samples, tokenizer and chat template, found before any GPU time."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..settings import FoundryError
from .chat_checks import Check, Tally, checks_of, every_row_renders
from .settings import LintSettings
from .template_process import MAX_CHARACTERS, TemplateLimitError, TemplateProcess

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["auto", "sft", "preference"]
COLUMNS = {"sft": ("messages",), "preference": ("prompt", "chosen", "rejected")}
COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}


@dataclass(frozen=True)
class Report:
    """All checks, and the first sample as text: pieces that are trained or not."""

    checks: list[Check]
    pieces: list[tuple[bool, str]] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether training on these samples would go wrong."""
        return any(check.status == "FAIL" for check in self.checks)


def lint(settings: LintSettings) -> None:
    """Check a file, print the report, and exit with code 1 when a check fails.

    Raises:
        FoundryError: the file or the tokenizer cannot be read.
    """
    numbered = list(read_rows(settings.file, settings.num_samples))
    try:
        report = lint_samples(
            [row for _, row in numbered],
            settings.tokenizer,
            settings.max_length,
            settings.kind,
            settings.time_limit_s,
            settings.memory_limit_mb,
            [number for number, _ in numbered],
        )
    except UnlikeSampleError as error:
        raise FoundryError(f"{settings.file}: {error}") from error
    print_report(report, f"{settings.file}, {len(numbered):,} rows")
    if report.failed:
        sys.exit(1)


def lint_samples(
    samples: Iterable[Mapping[str, Any]],
    tokenizer: str | Path | PreTrainedTokenizerBase,
    max_length: int = 1024,
    kind: Literal["auto", "sft", "preference"] = "auto",
    time_limit_s: float = 10.0,
    memory_limit_mb: int = 1024,
    numbers: Iterable[int] | None = None,
) -> Report:
    """Check samples in TRL's conversational formats against a tokenizer and its chat template.

    The template runs in a child process alone; this process never renders it.

    Args:
        tokenizer: folder, or a tokenizer in memory.
        max_length: tokens that training keeps of a sequence, from its start.
        time_limit_s: for each row; the template may also grow by ``memory_limit_mb``.
        numbers: what messages call the rows; from 1 when not given.

    Raises:
        FoundryError: no samples, a sample of another format, or no tokenizer that loads.
    """
    rows = list(samples)
    names = [f"row {number}" for number in (numbers or range(1, len(rows) + 1))]
    columns = COLUMNS[kind_of(rows, kind)]
    plain = [plain_sample(row, columns, name) for row, name in zip(rows, names, strict=True)]
    with ExitStack() as stack:
        folder = tokenizer
        if not isinstance(folder, (str, Path)):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
        process = TemplateProcess(folder, time_limit_s, memory_limit_mb << 20, max_length)
        stack.enter_context(process)
        return _lint(process, dict(zip(names, plain, strict=True)), max_length, "messages" in columns)


def _lint(process: TemplateProcess, rows: dict[str, Any], max_length: int, is_sft: bool) -> Report:
    facts = process.start()
    if not facts["template"]:
        return Report(
            [
                Check(
                    "chat template",
                    "FAIL",
                    "none (or none named default); set tokenizer.chat_template and save it again",
                )
            ]
        )
    checks = [Check("chat template", "PASS", "present")]
    tally = Tally(len(rows))
    pieces: list[tuple[bool, str]] = []
    for name, sample in rows.items():
        try:
            answer = process.render(sample, decode=not pieces)
        except TemplateLimitError as error:
            return Report([*checks, Check("template within limits", "FAIL", f"{name}: {error}")])
        if "error" in answer:
            tally.num_refused += 1
            tally.first_refusal = tally.first_refusal or f"{name}: {answer['error']}"
            continue
        pieces = pieces or [(trained, text) for trained, text in answer["pieces"]]
        tally.add(answer, facts, max_length)
    within = (
        f"slowest row {process.slowest_s * 1000:,.0f} ms of {process.time_limit_s:g} s, "
        f"longest {tally.longest_characters:,} of {MAX_CHARACTERS:,} characters"
    )
    checks += [Check("template within limits", "PASS", within), every_row_renders(tally)]
    if tally.num_sequences:
        checks += checks_of(tally, facts, max_length, is_sft)
    return Report(checks, pieces)


# ----------------------------------------------------------------------------------------------- samples


class UnlikeSampleError(FoundryError):
    """A row is not in the format that training reads."""


def read_rows(path: str | Path, num_rows: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON lines file with their line numbers, spread evenly over it.

    Raises:
        FoundryError: it cannot be read, is empty, or a line is not a JSON object.
    """
    try:
        with open(path, "rb") as file:
            present = [number for number, line in enumerate(file, start=1) if line.strip()]
            if not present:
                raise FoundryError(f"{path}: empty; expected JSON lines")
            count = min(num_rows, len(present))
            wanted = {present[place * len(present) // count] for place in range(count)}
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if number in wanted:
                    yield number, _json_object(line, f"{path}, line {number}")
    except OSError as error:
        raise FoundryError(f"{path}: cannot read the samples ({error.strerror})") from error


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FoundryError(f"{where}: not JSON ({error})") from error
    if not isinstance(row, dict):
        raise FoundryError(f"{where}: expected a JSON object, found {type(row).__name__}")
    return row


def kind_of(rows: Sequence[Mapping[str, Any]], kind: Kind) -> str:
    """``sft`` or ``preference``, as asked or by the keys of the first row."""
    if not rows:
        raise UnlikeSampleError("no samples to check")
    if kind != "auto":
        return kind
    for name, columns in COLUMNS.items():
        if all(column in rows[0] for column in columns):
            return name
    raise UnlikeSampleError(
        f"the first row has {', '.join(rows[0]) or 'no keys'}; expected messages, or prompt, chosen, rejected"
    )


def plain_sample(row: Mapping[str, Any], columns: Sequence[str], name: str) -> dict[str, Any]:
    """The columns that training reads, each a list of messages with a role and a text."""
    for column in columns:
        messages = row.get(column)
        if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
            raise UnlikeSampleError(
                f"{name}: {column}: expected a list of messages, each with role and content as text"
            )
    return {column: row[column] for column in columns}


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


# ------------------------------------------------------------------------------------------------ report


def print_report(report: Report, title: str) -> None:
    """The checks as one small table, then the first sample with the trained tokens marked."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for column in ("check", "", "in numbers"):
        table.add_column(column, overflow="fold")
    for check in report.checks:
        table.add_row(Text(check.name), Text(check.status, COLOURS[check.status]), Text(check.detail))
    console.print(table)
    if report.pieces:
        marks = "in colour" if console.is_terminal else "between « and »"
        console.print(f"\nthe first sample, trained tokens {marks}:")
        console.print(marked(report.pieces, coloured=console.is_terminal), soft_wrap=True)


def marked(pieces: Iterable[tuple[bool, str]], coloured: bool) -> Any:
    """The text of a sample with what is trained in colour, or between « and »."""
    from rich.text import Text

    text = Text()
    for trained, part in pieces:
        text.append(part if coloured or not trained else f"«{part}»", "bold green" if trained else "dim")
    return text
