"""Which samples of a chat dataset are used: malformed and repeated ones counted, the rest drawn and split."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, NamedTuple

from tqdm.auto import tqdm

from ...settings import FoundryError
from ..samples.conversations import MalformedRowError, Row, Sample, opening_of, with_system_prompt
from ..samples.rows import NumberedRow
from .datasets import ChatDataset
from .message_trees import LeftOut
from .settings import ChatSettings
from .source import Source

SILENT_S = 2.0  # a bar is shown for what takes longer


class Entry(NamedTuple):
    """Where one sample's line stands in the spool, in bytes, and a hash of how its conversation opens."""

    start: int
    num_bytes: int
    opening: bytes


@dataclass
class Collected:
    """What the rows gave; row numbers begin at 1."""

    num_rows: int = 0
    entries: list[Entry] = field(default_factory=list)
    malformed: Counter[str] = field(default_factory=Counter)
    first_malformed: tuple[int, str] | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    num_duplicates: int = 0

    @property
    def num_malformed(self) -> int:
        return sum(self.malformed.values())

    def add_malformed(self, number: int, error: MalformedRowError) -> None:
        """Count a row under its reason, and keep the first one's number and words."""
        self.malformed[str(error.reason)] += 1
        if self.first_malformed is None or number < self.first_malformed[0]:
            self.first_malformed = (number, str(error))


def collect(source: Source, dataset: ChatDataset, settings: ChatSettings, spool: IO[bytes]) -> Collected:
    """Convert every row; each different sample becomes a line of the spool, so that memory stays small.

    Raises:
        FoundryError: more rows are malformed than the settings allow, or no sample is left.
    """
    collected, seen = Collected(), set()
    rows = tqdm(source.rows, "convert", source.num_rows, unit="row", delay=SILENT_S)
    for number, outcome in dataset.samples(_readable(rows, collected), settings.language):
        if isinstance(outcome, MalformedRowError):
            collected.add_malformed(number, outcome)
            continue
        if isinstance(outcome, LeftOut):
            collected.left_out[outcome.reason] += 1
            continue
        sample = with_system_prompt(outcome, settings.system_prompt)
        line = (json.dumps(sample, ensure_ascii=False) + "\n").encode()
        digest = hashlib.sha256(line).digest()
        if digest in seen:
            collected.num_duplicates += 1
            continue
        seen.add(digest)
        collected.entries.append(Entry(spool.tell(), len(line), _opening_digest(sample)))
        spool.write(line)
    _refuse_unusable(source, collected, settings.max_malformed_fraction)
    return collected


def _readable(rows: Iterable[NumberedRow], collected: Collected) -> Iterator[tuple[int, Row]]:
    for number, row in rows:
        collected.num_rows += 1
        if isinstance(row, MalformedRowError):
            collected.add_malformed(number, row)
        else:
            yield number, row


def _opening_digest(sample: Sample) -> bytes:
    return hashlib.sha256(opening_of(sample).strip().encode()).digest()


def _refuse_unusable(source: Source, collected: Collected, allowed: float) -> None:
    if collected.first_malformed and collected.num_malformed > allowed * collected.num_rows:
        number, first = collected.first_malformed
        raise FoundryError(
            f"{source.name}: {collected.num_malformed} of {collected.num_rows} rows are malformed "
            f"({counts_in_words(collected.malformed)}), first row {number}: {first}; "
            f"expected at most {allowed:.1%} (--max_malformed_fraction)"
        )
    if not collected.entries:
        left_out = counts_in_words(collected.left_out)
        raise FoundryError(
            f"{source.name}: no sample in {collected.num_rows} rows ({left_out or 'it is empty'})"
        )


def counts_in_words(counts: Counter[str]) -> str:
    """``3 empty text, 1 missing key``, the most frequent first."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


def select(
    entries: Sequence[Entry], seed: int, max_samples: int | None, validation_fraction: float
) -> tuple[list[Entry], list[Entry]]:
    """Shuffle, keep ``max_samples``, and hold out a share; no opening is on both sides.

    Whole groups of samples with one opening are held out, in the order of a hash of seed and opening, so a
    larger ``max_samples`` holds out mostly the same conversations.

    Returns:
        Train side and held-out side; the latter is empty only for a share of 0.

    Raises:
        FoundryError: all samples open alike, so none can be held out.
    """
    drawn = list(entries)
    random.Random(seed).shuffle(drawn)
    drawn = drawn[:max_samples]
    if validation_fraction == 0:
        return drawn, []
    groups: dict[bytes, int] = defaultdict(int)
    for entry in drawn:
        groups[entry.opening] += 1
    if len(groups) < 2:
        raise FoundryError(
            f"all {len(drawn)} samples open with the same question, so none can be held out; "
            "give more samples or --validation_fraction=0"
        )
    held_out = _held_out_openings(groups, seed, max(1, round(validation_fraction * len(drawn))))
    sides: tuple[list[Entry], list[Entry]] = ([], [])
    for entry in drawn:
        sides[entry.opening in held_out].append(entry)
    return sides


def _held_out_openings(groups: dict[bytes, int], seed: int, wanted: int) -> set[bytes]:
    """Openings whose groups together hold at most ``wanted`` samples; the smallest group where all are larger."""
    order = sorted(groups, key=lambda opening: hashlib.sha256(b"%d:" % seed + opening).digest())
    chosen: set[bytes] = set()
    held = 0
    for opening in order:
        if held + groups[opening] <= wanted and len(chosen) + 1 < len(order):
            chosen.add(opening)
            held += groups[opening]
    return chosen or {min(order, key=lambda opening: groups[opening])}
