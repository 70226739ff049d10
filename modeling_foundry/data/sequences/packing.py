"""Packed pretraining sequences: blocks of a shard or corpus, shuffled by position, mapped from disk."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...settings import FoundryError
from ..tokens.corpus import TokenSource
from .shuffle import shuffled_position

# Positions are shuffled this many at a time: numpy takes as long for one as for sixty-four.
CHUNK = 64


class PackedDataset(Dataset):
    """Item i is one block of ``sequence_length`` consecutive tokens.

    Blocks do not overlap, so an epoch sees no token twice; the tokens after the last whole block are not seen.
    With ``num_samples`` the dataset is as long as the run needs: sample i belongs to epoch i // num_blocks and
    each epoch has its own shuffle.  Which block sample i is depends on the seed alone, not on ranks, workers or
    restarts.

    Args:
        source: a token shard, or a split of a corpus.
        num_samples: length; None is one epoch in file order (for evaluation).
        document_mask: also return ``position_ids`` that restart at each document, from which the attention mask
            keeps documents apart.

    Raises:
        FoundryError: the source does not fill one sequence.
    """

    def __init__(
        self,
        source: TokenSource,
        sequence_length: int,
        num_samples: int | None = None,
        seed: int = 0,
        document_mask: bool = False,
    ) -> None:
        self.source, self.sequence_length, self.seed = source, sequence_length, seed
        self.document_mask, self.shuffle = document_mask, num_samples is not None
        self.num_blocks = source.num_tokens // sequence_length
        if self.num_blocks == 0:
            raise FoundryError(
                f"{source.path}: {source.num_tokens} tokens do not fill one sequence; "
                f"sequence_length must be at most that, found {sequence_length}"
            )
        self.num_samples = self.num_blocks if num_samples is None else num_samples
        self._chunk: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, dtype=np.int64))

    @property
    def num_corpus_tokens(self) -> int:
        """Tokens of one epoch."""
        return self.num_blocks * self.sequence_length

    def __len__(self) -> int:
        return self.num_samples

    def sample_ids(self, start: int, stop: int) -> NDArray[np.int64]:
        """Which blocks of the source the samples [start, stop) are, without reading any.

        Optimizer step k of a run with global batch b takes ``sample_ids(k * b, (k + 1) * b)``.
        """
        epochs, positions = np.divmod(np.arange(start, stop, dtype=np.int64), self.num_blocks)
        if not self.shuffle:
            return positions
        blocks = np.empty_like(positions)
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            blocks[inside] = shuffled_position(positions[inside], self.num_blocks, self.seed, int(epoch))
        return blocks

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``input_ids`` and ``labels``, int64 of shape (sequence_length,); ``position_ids`` with document_mask."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        start = self._block_of(index) * self.sequence_length
        ids = torch.from_numpy(self.source.read(start, start + self.sequence_length).astype(np.int64))
        item = {"input_ids": ids, "labels": ids.clone()}
        if self.document_mask:
            item["position_ids"] = self._positions(start)
        return item

    def _block_of(self, index: int) -> int:
        number, place = divmod(index, CHUNK)
        known, blocks = self._chunk
        if known != number:
            blocks = self.sample_ids(number * CHUNK, (number + 1) * CHUNK)
            self._chunk = number, blocks
        return int(blocks[place])

    def _positions(self, start: int) -> Tensor:
        """0, 1, 2, ... from the start of the block and again from each document start inside it."""
        inside = self.source.document_ends_in(start, start + self.sequence_length) - start
        origin = np.zeros(self.sequence_length, dtype=np.int64)
        origin[inside] = inside
        return torch.from_numpy(np.arange(self.sequence_length) - np.maximum.accumulate(origin))
