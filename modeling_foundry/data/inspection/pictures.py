"""What a tokenized corpus holds: numbers, pictures, and one packed sequence as training will see it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from ...settings import FoundryError
from ..sequences.packing import PackedDataset
from ..tokens.corpus import CorpusSplit, TokenCorpus
from .settings import InspectSettings

DOCUMENT_STYLES = ("cyan", "yellow", "green", "magenta")


def inspect(settings: InspectSettings) -> None:
    """Print the statistics of a split and a decoded sample; draw pictures where ``plot`` names a folder.

    Raises:
        FoundryError: no corpus there, or too few tokens for one sequence.
    """
    console = Console(highlight=False, markup=False)
    corpus = TokenCorpus.open(settings.data_dir)
    split = corpus.split(settings.split)
    lengths = document_lengths(split, settings.sample_shards)
    console.print(f"{settings.data_dir}, split {split.name}", style="bold")
    for label, value in facts_of(corpus, split, lengths).items():
        console.print(f"  {label:<28} {value}")
    if split.num_tokens >= settings.sequence_length:
        console.print("\none packed sequence, a colour a document:", style="bold")
        console.print(coloured_sample(corpus, split, settings.sequence_length, settings.seed))
    if settings.plot is not None:
        others = [TokenCorpus.open(folder) for folder in settings.compare or []]
        for path in draw(Path(settings.plot), [corpus, *others], lengths):
            console.print(f"drew {path}")


def facts_of(corpus: TokenCorpus, split: CorpusSplit, lengths: NDArray[np.int64]) -> dict[str, str]:
    """Counts of a split and percentiles of its documents' lengths, as text."""
    counts = corpus.content["counts"][split.name]
    facts = {
        "files": f"{counts['files']:,}", "documents": f"{counts['documents']:,}",
        "tokens": f"{counts['tokens']:,}", "bytes of text": f"{counts['text_bytes']:,}",
        "bytes per token": f"{counts['text_bytes'] / max(1, counts['tokens']):.2f}",
        "vocabulary": f"{corpus.content['vocab_size']:,} ids, end of document {corpus.content['eos_token_id']}",
    }  # fmt: skip
    if len(lengths):
        middle, most, longest = np.percentile(lengths, (50, 95, 100), method="higher")
        facts["tokens of a document"] = f"median {middle:,}, 95% within {most:,}, longest {longest:,}"
    for reason, count in counts["bad_rows"].items():
        facts[f"rows with {reason}"] = f"{count:,}"
    return facts


def document_lengths(split: CorpusSplit, sample_shards: int) -> NDArray[np.int64]:
    """Tokens of each document, its end included, of ``sample_shards`` shards spread over the split."""
    numbers = range(0, len(split.entries), max(1, len(split.entries) // max(1, sample_shards)))
    lengths = [
        np.diff(split.shard(number).document_ends().astype(np.int64), prepend=0)
        for number in list(numbers)[:sample_shards]
    ]
    return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)


def coloured_sample(corpus: TokenCorpus, split: CorpusSplit, sequence_length: int, seed: int) -> Text:
    """The first packed sequence of a run with this seed; documents change colour where one ends."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_folder)
    ids = PackedDataset(split, sequence_length, num_samples=1, seed=seed)[0]["input_ids"].tolist()
    return coloured_documents(ids, corpus.content["eos_token_id"], tokenizer)


def coloured_documents(ids: list[int], eos_token_id: int, tokenizer: Any) -> Text:
    """Decoded ids; the colour changes behind each end of a document, and control characters show as escapes."""
    ends = [place + 1 for place, number in enumerate(ids) if number == eos_token_id]
    text = Text()
    for number, (start, stop) in enumerate(pairwise(dict.fromkeys([0, *ends, len(ids)]))):
        style = DOCUMENT_STYLES[number % len(DOCUMENT_STYLES)]
        decoded = tokenizer.decode(ids[start:stop], skip_special_tokens=False)
        text.append("".join(map(_printable, decoded)), style=style)
    return text


def _printable(character: str) -> str:
    """A terminal obeys some of the characters that a corpus may hold."""
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()


def draw(folder: Path, corpora: list[TokenCorpus], lengths: NDArray[np.int64]) -> list[Path]:
    """``document_lengths.png`` of the first corpus and ``tokens_by_source.png`` of all.

    Raises:
        FoundryError: the folder cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FoundryError(f"plot: cannot write to {folder} ({error.strerror})") from error
    paths = [folder / "document_lengths.png", folder / "tokens_by_source.png"]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    longest = max(2, int(lengths.max(initial=2)))
    axes.hist(lengths, bins=list(np.geomspace(1, longest, 50)), color="#4477aa")
    axes.set(xscale="log", xlabel="tokens of a document", ylabel="documents", title="Length of the documents")
    _finish(figure, axes, paths[0])
    rows = {
        f"{corpus.folder}\n{name}": corpus.content["counts"][name]["tokens"]
        for corpus in reversed(corpora)
        for name in reversed(corpus.splits)
    }
    figure, axes = pyplot.subplots(figsize=(7, 1.2 + 0.5 * len(rows)), layout="constrained")
    bars = axes.barh(list(rows), list(rows.values()), color="#4477aa")
    axes.bar_label(bars, labels=[f"{count:,}" for count in rows.values()], padding=4)
    axes.xaxis.set_major_formatter(ticker.EngFormatter())
    axes.set(xlabel="tokens", title="Tokens by source and split", xlim=(0, max(rows.values()) * 1.25 or 1))
    _finish(figure, axes, paths[1])
    return paths


def _finish(figure: Any, axes: Any, path: Path) -> None:
    from matplotlib import pyplot

    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
