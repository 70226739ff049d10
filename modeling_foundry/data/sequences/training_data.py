"""What a training run reads: one folder of tokens, or several in given shares, verified before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from ...settings import FoundryError
from ..tokens.corpus import CORPUS_NAME, TokenCorpus, TokenSource
from ..tokens.mapped_files import check_open_files
from ..tokens.prepared import MANIFEST_NAME, load_prepared
from ..tokens.verification import verify_corpus
from ..workers.executors import num_workers
from .mixture import HeldOutMixture, MixedDataset, shares_of
from .packing import PackedDataset

# The split whose loss is watched: the first of these that a corpus has.
HELD_OUT_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class TrainingData:
    """Verified token sources.

    Args:
        train: by folder; more than one with ``weights``.
        held_out: by folder, of those that have a held-out split.
        fingerprint: changes when any token, weight or limit does.
        max_epochs: most repeats of a source of a mixture.
    """

    train: dict[str, TokenSource]
    weights: dict[str, float]
    held_out: dict[str, TokenSource]
    tokenizer_folder: Path
    fingerprint: str
    max_epochs: float | None = None

    def train_dataset(
        self, sequence_length: int, num_samples: int, seed: int, document_mask: bool
    ) -> PackedDataset | MixedDataset:
        """``num_samples`` packed sequences; see :class:`PackedDataset` and :class:`MixedDataset`."""
        if self.max_epochs is None:
            (source,) = self.train.values()
            return PackedDataset(source, sequence_length, num_samples, seed, document_mask)
        return MixedDataset(
            self.train, self.weights, sequence_length, num_samples, seed, self.max_epochs, document_mask
        )

    def held_out_dataset(
        self, sequence_length: int, max_sequences: int, document_mask: bool
    ) -> Subset | HeldOutMixture:
        """The first sequences of the held-out side, in file order; of a mixture, of every source by its weight.

        Raises:
            FoundryError: a source has no held-out side, or it does not fill one sequence.
        """
        for name in self.train:
            if name not in self.held_out:
                raise FoundryError(
                    f"{name}: no validation or test split; give --eval_strategy=no, or hold files out with "
                    "prepare_data.py manifest --held_out_files"
                )
        if self.max_epochs is not None:
            return HeldOutMixture(self.held_out, self.weights, sequence_length, max_sequences, document_mask)
        (source,) = self.held_out.values()
        dataset = PackedDataset(source, sequence_length, document_mask=document_mask)
        return Subset(dataset, range(min(len(dataset), max_sequences)))


def open_training_data(folder: str | Path) -> TrainingData:
    """Open and verify a folder that prepare_data.py wrote, small (``data.json``) or large (``corpus.json``).

    Raises:
        FoundryError: neither is there, a file is not as it was written, or too few files may be open.
    """
    check_open_files()
    folder = Path(folder)
    if (folder / MANIFEST_NAME).is_file() or not (folder / CORPUS_NAME).is_file():
        prepared = load_prepared(folder)
        return TrainingData(
            {str(folder): prepared.shard("train")}, {str(folder): 1.0},
            {str(folder): prepared.shard("heldout")}, prepared.tokenizer_folder, prepared.fingerprint,
        )  # fmt: skip
    corpus = TokenCorpus.open(folder)
    verify_corpus(corpus, num_workers(-1))
    names = [name for name in HELD_OUT_SPLITS if name in corpus.splits]
    return TrainingData(
        {str(folder): corpus.split("train")}, {str(folder): 1.0},
        {str(folder): corpus.split(name) for name in names[:1]}, corpus.tokenizer_folder, corpus.fingerprint,
    )  # fmt: skip


def open_mixture(weights: Mapping[str, Any], max_epochs: float) -> TrainingData:
    """Open and verify several folders of one tokenizer.

    Raises:
        FoundryError: as :func:`open_training_data`, or the tokenizers differ, or a corpus is there twice, or
            nothing is mixed.
    """
    if not weights:
        raise FoundryError("mixture: expected at least one folder with its weight, found none")
    if not max_epochs > 0:
        raise FoundryError(f"max_epochs: expected more than 0, found {max_epochs}")
    shares_of(weights)  # a wrong weight is said before any corpus is read
    parts = {name: open_training_data(name) for name in weights}
    _refuse_twice(parts)
    tokenizers = {
        name: (part.tokenizer_folder / "tokenizer.json").read_bytes() for name, part in parts.items()
    }
    first = next(iter(parts))
    for name, tokenizer in tokenizers.items():
        if tokenizer != tokenizers[first]:
            raise FoundryError(f"mixture: {name} and {first} were made with different tokenizers")
    content = [(name, part.fingerprint, weights[name]) for name, part in parts.items()]
    return TrainingData(
        {name: source for name, part in parts.items() for source in part.train.values()},
        dict(weights),
        {name: source for name, part in parts.items() for source in part.held_out.values()},
        parts[first].tokenizer_folder,
        hashlib.sha256(repr((content, max_epochs)).encode()).hexdigest()[:16],
        max_epochs,
    )


def _refuse_twice(parts: Mapping[str, TrainingData]) -> None:
    """One corpus under two names would be repeated more often than ``max_epochs`` says."""
    known: dict[str, str] = {}
    for name, part in parts.items():
        other = known.setdefault(part.fingerprint, name)
        if other != name:
            raise FoundryError(f"mixture: {name} and {other} hold the same tokens; give one of them")
