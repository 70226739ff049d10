"""What a training run reads: one folder of tokens, or several in given shares, verified before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from ..settings import FoundryError
from .executors import num_workers
from .folder import MANIFEST_NAME, load_prepared
from .mixture import MixedDataset
from .packing import PackedDataset
from .token_corpus import CORPUS_NAME, TokenCorpus, TokenSource
from .verification import verify_corpus

# The split whose loss is watched: the first of these that a corpus has.
HELD_OUT_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class TrainingData:
    """Verified token sources.

    Args:
        train: by folder; more than one with ``weights``.
        held_out: None where no source has a held-out split; of a mixture, that of the first source that has one.
        fingerprint: changes when any token, weight or limit does.
        max_epochs: most repeats of a source of a mixture.
    """

    train: dict[str, TokenSource]
    weights: dict[str, float]
    held_out: TokenSource | None
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

    def held_out_dataset(self, sequence_length: int, max_sequences: int, document_mask: bool) -> Dataset:
        """The first sequences of the held-out side, in file order.

        Raises:
            FoundryError: there is no held-out side, or it does not fill one sequence.
        """
        if self.held_out is None:
            raise FoundryError(
                f"{', '.join(self.train)}: no validation or test split; give --eval_strategy=no, or hold files out "
                "with prepare_data.py manifest --held_out_files"
            )
        dataset = PackedDataset(self.held_out, sequence_length, document_mask=document_mask)
        return Subset(dataset, range(min(len(dataset), max_sequences)))


def open_training_data(folder: str | Path) -> TrainingData:
    """Open and verify a folder that prepare_data.py wrote, small (``data.json``) or large (``corpus.json``).

    Raises:
        FoundryError: neither is there, or a file is not as it was written.
    """
    folder = Path(folder)
    if (folder / MANIFEST_NAME).is_file() or not (folder / CORPUS_NAME).is_file():
        prepared = load_prepared(folder)
        return TrainingData(
            {str(folder): prepared.shard("train")}, {str(folder): 1.0}, prepared.shard("heldout"),
            prepared.tokenizer_folder, prepared.fingerprint,
        )  # fmt: skip
    corpus = TokenCorpus.open(folder)
    verify_corpus(corpus, num_workers(-1))
    name = next((name for name in HELD_OUT_SPLITS if name in corpus.splits), None)
    return TrainingData(
        {str(folder): corpus.split("train")}, {str(folder): 1.0}, None if name is None else corpus.split(name),
        corpus.tokenizer_folder, corpus.fingerprint,
    )  # fmt: skip


def open_mixture(weights: Mapping[str, Any], max_epochs: float) -> TrainingData:
    """Open and verify several folders of one tokenizer.

    Raises:
        FoundryError: as :func:`open_training_data`, or the tokenizers differ, or nothing is mixed.
    """
    if not weights:
        raise FoundryError("mixture: expected at least one folder with its weight, found none")
    if not max_epochs > 0:
        raise FoundryError(f"max_epochs: expected more than 0, found {max_epochs}")
    parts = {name: open_training_data(name) for name in weights}
    tokenizers = {
        name: (part.tokenizer_folder / "tokenizer.json").read_bytes() for name, part in parts.items()
    }
    first = next(iter(parts))
    for name, tokenizer in tokenizers.items():
        if tokenizer != tokenizers[first]:
            raise FoundryError(f"mixture: {name} and {first} were made with different tokenizers")
    content = [(name, part.fingerprint, weights[name]) for name, part in parts.items()]
    return TrainingData(
        {name: source for part in parts.values() for name, source in part.train.items()},
        dict(weights),
        next((part.held_out for part in parts.values() if part.held_out is not None), None),
        parts[first].tokenizer_folder,
        hashlib.sha256(repr((content, max_epochs)).encode()).hexdigest()[:16],
        max_epochs,
    )
