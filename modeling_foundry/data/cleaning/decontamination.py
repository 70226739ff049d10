"""N-gram decontamination: no training document may hold thirteen words in a row of an evaluation item.

The manner of GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C): texts are lower-cased, punctuation is
taken off, words are split at white space, and word n-grams of both sides are compared.  datatrove has such a
filter (``NGramsDecontFilter``), but its index is built through lighteval; ours takes JSONL files and lm-eval
tasks, and says which item a document held.

Other than in GPT-3, an n-gram counts however often it occurs: GPT-3 let those pass that occur over ten times.
"""

from __future__ import annotations

import contextlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import regex
import xxhash
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.text import ngrams

if TYPE_CHECKING:
    from datatrove.data import Document
    from datatrove.pipeline.writers import JsonlWriter

# An item of fewer words than an n-gram is looked for as a whole, if it has this many; shorter ones are phrases
# that occur by chance.
MIN_ITEM_WORDS = 8
# GPT-3: characters cut on each side of an n-gram, shortest piece kept, most pieces of a document kept.
CUT_MARGIN, MIN_PIECE, MAX_PIECES = 200, 200, 10
NUM_MATCHES_SHOWN = 10

# Soft hyphens, zero-width spaces and joiners, byte order marks, variation selectors.
INVISIBLE = regex.compile(r"[\p{Cf}\p{Default_Ignorable_Code_Point}]+")
# Inside a word it is left out as often as it is written: king's, king’s, kings.
APOSTROPHE = regex.compile(r"(?<=[\p{L}\p{M}])['’ʼ](?=\p{L})")
# Han and kana, written without spaces, are compared by the character; Thai and its like are not split at all.
WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}]\p{M}*|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}])[\p{L}\p{M}\p{N}])+"
)
TOKEN = regex.compile(r"\S+")


def words_of(text: str) -> list[str]:
    """The words of a text as they are compared: NFKC, case folded, all but letters, marks and digits taken off.

    An apostrophe inside a word is taken out of it; all else that is taken off ends a word.
    """
    visible = INVISIBLE.sub("", text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold())
    return WORD.findall(APOSTROPHE.sub("", folded))


def words_with_places(text: str) -> list[tuple[str, int, int]]:
    """:func:`words_of` with the start and end, in characters, of what stands between white space around each."""
    return [
        (word, token.start(), token.end())
        for token in TOKEN.finditer(text)
        for word in words_of(token.group())
    ]


def window_hashes(words: Sequence[str], size: int) -> list[int]:
    """64-bit hash of each run of ``size`` words; place i of the list is the run that starts at word i."""
    return [xxhash.xxh3_64_intdigest(" ".join(window).encode()) for window in ngrams(words, size)]


# ------------------------------------------------------------------------------------------------ index


@dataclass(frozen=True)
class EvaluationItem:
    """One item of an evaluation task: its question and its true answer as one text."""

    task: str
    item: str
    text: str


class EvaluationIndex:
    """Every n-gram of every item, by hash.

    Two different n-grams share a 64-bit hash with probability 2**-64: against a million n-grams, one document
    in 10**11 of a hundred words is removed for nothing.
    """

    def __init__(self, items: Sequence[EvaluationItem], ngram_size: int) -> None:
        self.items = list(items)
        self.uncheckable: list[int] = []
        # Number of words -> hash -> the items that hold such a run.
        self.tables: dict[int, dict[int, tuple[int, ...]]] = {}
        for place, item in enumerate(self.items):
            words = words_of(item.text)
            if len(words) < min(MIN_ITEM_WORDS, ngram_size):
                self.uncheckable.append(place)
                continue
            size = min(len(words), ngram_size)
            table, alone = self.tables.setdefault(size, {}), (place,)
            for value in window_hashes(words, size):
                known = table.get(value)
                if known is None:
                    table[value] = alone
                elif known[-1] != place:
                    table[value] = (*known, place)

    def places(self, words: Sequence[str]) -> Iterator[tuple[int, int, tuple[int, ...]]]:
        """Each run of words that an item holds: its first word, its number of words, the items."""
        for size, table in self.tables.items():
            for start, value in enumerate(window_hashes(words, size)):
                if value in table:
                    yield start, size, table[value]

    def matches(self, words: Sequence[str]) -> dict[int, str]:
        """Item -> the first n-gram of it that the words hold."""
        found: dict[int, str] = {}
        for start, size, items in self.places(words):
            for item in items:
                found.setdefault(item, " ".join(words[start : start + size]))
        return found


def items_as_lines(items: Sequence[EvaluationItem]) -> str:
    """The items as JSON lines, for the workers to read with :func:`load_index`."""
    return "".join(json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)


def load_index(path: str, ngram_size: int) -> EvaluationIndex:
    """The index of a file of :func:`items_as_lines`, built once a process as long as the file is the same."""
    status = os.stat(path)
    return _load_index(path, ngram_size, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _load_index(path: str, ngram_size: int, state: tuple[int, ...]) -> EvaluationIndex:
    with open(path, encoding="utf-8") as file:
        return EvaluationIndex([EvaluationItem(**json.loads(line)) for line in file], ngram_size)


# ------------------------------------------------------------------------------------------------ filter


class NGramFilter(BaseFilter):
    """Removes the documents that hold an evaluation n-gram, or cuts the passage out of them.

    Args:
        items_path: a file of :func:`items_as_lines`; the index is not part of the step, which datatrove copies to
            its workers for every task.
        mode: ``remove`` the document, or ``cut`` the n-gram with 200 characters on each side, as GPT-3 did.
            What is left of a document stays one document, its pieces joined by an empty line.  It is removed
            where no piece of 200 characters is left, or more than ten are.
        passages_writer: where documents that were cut are recorded, with the passages as their text.
    """

    name = "n-gram decontamination"

    def __init__(
        self,
        items_path: str,
        ngram_size: int,
        mode: Literal["remove", "cut"],
        exclusion_writer: JsonlWriter,
        passages_writer: JsonlWriter | None = None,
    ) -> None:
        super().__init__(exclusion_writer)
        self.items_path, self.ngram_size, self.mode = items_path, ngram_size, mode
        self.passages_writer = passages_writer
        self.rank = 0

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        self.rank = rank
        with self.passages_writer or contextlib.nullcontext():
            yield from super().run(data, rank, world_size)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document is kept; what it held is noted in its metadata."""
        index = load_index(self.items_path, self.ngram_size)
        found = index.matches(words_of(doc.text))
        if not found:
            return True
        note = {
            "num_items": len(found),
            "items": sorted(found),
            "matches": [
                {"task": index.items[place].task, "item": index.items[place].item, "ngram": ngram}
                for place, ngram in list(found.items())[:NUM_MATCHES_SHOWN]
            ],
        }
        if self.mode == "cut" and self._cut(doc, index, note):
            return True
        doc.metadata["contamination"] = note
        return False, "contaminated"

    def _cut(self, doc: Document, index: EvaluationIndex, note: dict[str, Any]) -> bool:
        """Cut the passages; whether enough is left that holds no n-gram, also not over a seam."""
        pieces, passages = cut_passages(doc.text, index)
        rest = "\n\n".join(pieces)
        if not 0 < len(pieces) <= MAX_PIECES or index.matches(words_of(rest)):
            return False
        if self.passages_writer is not None:
            record = type(doc)(
                "\n\n".join(passages), doc.id, metadata={**doc.metadata, "contamination": note}
            )
            self.passages_writer.write(record, self.rank)
        doc.text = rest
        return True


def cut_passages(text: str, index: EvaluationIndex) -> tuple[list[str], list[str]]:
    """Cut every evaluation n-gram with its margin out of a text.

    Returns:
        The pieces long enough to keep, and all the rest, both in the order of the text.
    """
    words = words_with_places(text)
    spans = sorted(
        (max(0, words[start][1] - CUT_MARGIN), min(len(text), words[start + size - 1][2] + CUT_MARGIN))
        for start, size, _ in index.places([word for word, _, _ in words])
    )
    pieces: list[str] = []
    passages: list[str] = []
    end = 0
    for first, last in [*spans, (len(text), len(text))]:
        between = text[end : max(end, first)]
        (pieces if len(between.strip()) >= MIN_PIECE else passages).append(between.strip())
        passages.append(text[max(end, first) : max(end, last)])
        end = max(end, last)
    return pieces, [passage for passage in passages if passage.strip()]
