"""What goes wrong silently between samples, tokenizer and chat template, found before any GPU time."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...settings import FoundryError
from ..samples.conversations import MalformedRowError
from ..samples.files import CheckedFile, Sample, check_file
from ..samples.samples import Kind, checked_sample, kind_of
from .checks import Check, Cut, Tally, checks_of, every_row_renders
from .settings import LintSettings
from .template_process import MAX_CHARACTERS, TemplateLimitError, TemplateProcess

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLOURS = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
NO_TEMPLATE = "none (or none named default); set tokenizer.chat_template and save it again"


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
        FoundryError: the file, one of its rows, or the tokenizer cannot be read.
    """
    file = check_file(settings.file, settings.kind, settings.num_samples)
    tokenizer: Any = settings.tokenizer
    if settings.chat_template_path is not None:
        from ...saved_model import load_tokenizer_to_train  # transformers takes seconds to import

        tokenizer = load_tokenizer_to_train(tokenizer, settings.chat_template_path)
    cut = Cut(settings.max_length, settings.truncation_mode)
    with Linter(tokenizer, cut, settings.time_limit_s, settings.memory_limit_mb) as linter:
        report = linter.report_on(file)
    print_report(report, f"{settings.file}, {len(file.to_render):,} of {file.num_rows:,} rows rendered")
    if report.failed:
        sys.exit(1)


def lint_samples(
    samples: Iterable[Mapping[str, Any]],
    tokenizer: str | Path | PreTrainedTokenizerBase,
    max_length: int | None = 1024,
    kind: Kind | Literal["auto"] = "auto",
    time_limit_s: float = 10.0,
    memory_limit_mb: int = 1024,
    truncation_mode: Literal["keep_start", "keep_end"] = "keep_start",
) -> Report:
    """Check samples in TRL's conversational formats against a tokenizer and its chat template.

    The template runs in a child process alone; this process never renders it.

    Args:
        tokenizer: folder, or a tokenizer in memory.
        max_length: tokens that training keeps of a sequence; None keeps all.
        time_limit_s: for each row; the template may also grow by ``memory_limit_mb``.
        truncation_mode: whether those are kept from its start or from its end.

    Raises:
        FoundryError: no samples, one that training could not read as it stands, or no tokenizer that loads.
    """
    rows: dict[str, Sample] = {}
    for number, row in enumerate(samples, start=1):
        try:
            kind = kind_of(row, kind)
            rows[f"row {number}"] = checked_sample(row, kind)
        except MalformedRowError as error:
            raise FoundryError(f"row {number}: {error}") from error
    if kind == "auto":
        raise FoundryError("no samples to check")
    with Linter(tokenizer, Cut(max_length, truncation_mode), time_limit_s, memory_limit_mb) as linter:
        return linter.report(rows, kind)


class Linter:
    """A tokenizer's chat template in a child process, ready for any number of files; use it in a ``with`` block.

    Args:
        learns_all: every token of a conversation is learned, not the answers alone (``assistant_only_loss: false``).
    """

    def __init__(
        self,
        tokenizer: str | Path | PreTrainedTokenizerBase,
        cut: Cut,
        time_limit_s: float = 10.0,
        memory_limit_mb: int = 1024,
        learns_all: bool = False,
    ) -> None:
        self.tokenizer, self.cut, self.learns_all = tokenizer, cut, learns_all
        self.limits = (time_limit_s, memory_limit_mb << 20)

    def __enter__(self) -> Linter:
        with ExitStack() as stack:
            folder = self.tokenizer
            if not isinstance(folder, (str, Path)):
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                self.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
            self.process = TemplateProcess(folder, *self.limits, self.cut.max_length)
            stack.enter_context(self.process)
            self.facts = self.process.start()
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def report_on(self, file: CheckedFile) -> Report:
        """The checks of a file whose rows have the right shape."""
        report = self.report(file.to_render, file.kind)
        columns = f"{file.num_rows:,} rows, columns read: {', '.join(file.columns)}"
        if file.not_read:
            columns += f"; others, which nothing reads: {', '.join(sorted(file.not_read))}"
        return Report([Check("every row has the format", "PASS", columns), *report.checks], report.pieces)

    def report(self, rows: Mapping[str, Sample], kind: Kind) -> Report:
        """The checks of some rows, each under the name that messages call it."""
        if not self.facts["template"]:
            return Report([Check("chat template", "FAIL", NO_TEMPLATE)])
        checks, tally = [Check("chat template", "PASS", "present")], Tally(len(rows))
        pieces: list[tuple[bool, str]] = []
        for name, sample in rows.items():
            try:
                answer = self.process.render(sample, decode=not pieces)
            except TemplateLimitError as error:
                return Report([*checks, Check("template within limits", "FAIL", f"{name}: {error}")])
            if "error" in answer:
                tally.num_refused += 1
                tally.first_refusal = tally.first_refusal or f"{name}: {answer['error']}"
                continue
            if self.learns_all and kind == "sft":
                (sequence,) = answer["sequences"]
                sequence |= {"mask": [1] * len(sequence["ids"]), "turns": {}}
            pieces = pieces or [(trained, text) for trained, text in answer["pieces"]]
            tally.add(name, answer, self.facts, self.cut)
        checks += [self._within_limits(tally), every_row_renders(tally)]
        if tally.num_sequences:
            by_mask = kind == "sft" and not self.learns_all
            checks += checks_of(tally, self.facts, self.cut, by_mask, is_pair=kind != "sft")
        return Report(checks, pieces)

    def _within_limits(self, tally: Tally) -> Check:
        within = (
            f"slowest row {self.process.slowest_s * 1000:,.0f} ms of {self.process.time_limit_s:g} s, "
            f"longest {tally.longest_characters:,} of {MAX_CHARACTERS:,} characters"
        )
        return Check("template within limits", "PASS", within)


# ------------------------------------------------------------------------------------------------ report


def print_report(report: Report, title: str) -> None:
    """The checks as one small table, then the first sample with the trained tokens marked."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
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
