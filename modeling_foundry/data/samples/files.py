"""A whole file of samples, each row checked, in one pass; some rows are kept to be rendered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...settings import FoundryError
from .conversations import MalformedRowError, Row
from .rows import RowFile, rows_of_file
from .samples import CARRIED, COLUMNS, ROW_WEIGHTS, Kind, checked_sample, form_of, kind_of

Sample = dict[str, Any]
ROWS_OF_A_FORM = 3
MAX_FORMS = 100


@dataclass
class CheckedFile:
    """What one pass over a file found.

    Attributes:
        columns: what training reads: the kind's own, and tools or template variables where any row has them.
        not_read: columns that nobody reads -> rows that have them.
        to_render: rows spread evenly over the file, and of each form (see ``form_of``) the first few; by name.
        digests: a hash of each sample.
    """

    path: Path
    kind: Kind
    num_rows: int = 0
    columns: tuple[str, ...] = ()
    not_read: Counter[str] = field(default_factory=Counter)
    to_render: dict[str, Sample] = field(default_factory=dict)
    digests: set[int] = field(default_factory=set)


def check_file(path: str | Path, kind: Kind | Literal["auto"], num_rendered: int) -> CheckedFile:
    """Check the shape of every row.

    Args:
        num_rendered: rows to keep for the template, beside a few of each form.

    Raises:
        FoundryError: it cannot be read or holds no rows; or the first row that training could not read as it
            stands, with its number and how many more there are.
    """
    rows = rows_of_file(Path(path))
    first_of_forms, spread = FirstOfForms(), EvenSpread(num_rendered)
    found: CheckedFile | None = None
    carried: set[str] = set()
    for number, row, sample in _samples(rows, kind):
        found = found or CheckedFile(rows.path, kind_of(row, kind))
        found.num_rows += 1
        found.not_read.update(row.keys() - sample.keys())
        carried |= sample.keys()
        found.digests.add(digest_of(sample))
        spread.offer(number, sample)
        first_of_forms.offer(number, sample)
    if found is None:
        raise FoundryError(
            f"{path}: holds no samples; every row needs messages, or prompt, chosen and rejected"
        )
    for name in (*CARRIED, *ROW_WEIGHTS):  # empty ones, or weights that say what is done
        found.not_read.pop(name, None)
    found.columns = (*COLUMNS[found.kind], *(name for name in CARRIED if name in carried))
    chosen = dict(spread.chosen()) | dict(first_of_forms.chosen)
    found.to_render = {f"{rows.unit} {number}": chosen[number] for number in sorted(chosen)}
    return found


def samples_of_file(path: str | Path, kind: Kind) -> Iterator[Sample]:
    """Each sample in turn, of a file that :func:`check_file` let pass."""
    for _, _, sample in _samples(rows_of_file(Path(path)), kind):
        yield sample


def _samples(rows: RowFile, kind: Kind | Literal["auto"]) -> Iterator[tuple[int, Row, Sample]]:
    """Number, row and sample; the bad rows are counted, and refused at the end."""
    faults: list[str] = []
    num_faults = num_rows = 0
    for number, row in rows.rows:
        num_rows += 1
        try:
            if isinstance(row, MalformedRowError):
                raise row
            kind = kind_of(row, kind)
            sample = checked_sample(row, kind, rows.is_typed)
        except MalformedRowError as error:
            num_faults += 1
            faults = faults or [f"{rows.where(number)}: {error}"]
            continue
        if not num_faults:
            yield number, row, sample
    if num_faults:
        more = f" ({num_faults - 1:,} more of {num_rows:,} rows are refused)" * (num_faults > 1)
        raise FoundryError(faults[0] + more)


def digest_of(sample: Sample) -> int:
    """The same for samples of the same roles and texts, in this process."""
    lists = (messages for name, messages in sample.items() if name not in CARRIED)
    return hash(tuple((each["role"], each.get("content")) for messages in lists for each in messages))


class EvenSpread:
    """Some rows of a stream whose length nobody knows, spread evenly over it: every n-th, n doubled when full."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.step, self.seen = wanted, 1, 0
        self.kept: list[tuple[int, Sample]] = []

    def offer(self, number: int, sample: Sample) -> None:
        """Take the next row, or let it go."""
        if self.seen % self.step == 0:
            self.kept.append((number, sample))
            if len(self.kept) >= 2 * self.wanted:
                self.kept = self.kept[::2]
                self.step *= 2
        self.seen += 1

    def chosen(self) -> Iterable[tuple[int, Sample]]:
        """At most the wanted number of rows, the first row among them."""
        count = min(self.wanted, len(self.kept))
        return [self.kept[place * len(self.kept) // count] for place in range(count)]


class FirstOfForms:
    """The first few rows of each form: one row in thousands may be the only one that calls a tool."""

    def __init__(self) -> None:
        self.counts: Counter[Hashable] = Counter()
        self.chosen: list[tuple[int, Sample]] = []

    def offer(self, number: int, sample: Sample) -> None:
        """Keep the row if its form is rare so far."""
        form = form_of(sample)
        if self.counts[form] < ROWS_OF_A_FORM and (form in self.counts or len(self.counts) < MAX_FORMS):
            self.counts[form] += 1
            self.chosen.append((number, sample))
