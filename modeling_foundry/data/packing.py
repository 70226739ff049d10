"""Packed pretraining sequences: blocks of a token shard, shuffled by position, mapped from disk."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..settings import FoundryError
from .order import shuffled_position
from .shards import TokenShard


class PackedDataset(Dataset):
    """Item i is one block of ``sequence_length`` consecutive tokens.

    Blocks do not overlap, so an epoch sees no token twice.  With ``num_samples`` the dataset is as long as the
    run needs: sample i belongs to epoch i // num_blocks and each epoch has its own shuffle.  Which block sample
    i is depends on the seed alone, not on ranks, workers or restarts.

    Args:
        shard: opened token shard.
        num_samples: length; None is one epoch in file order (for evaluation).
        document_mask: also return ``position_ids`` that restart at each document, from which the attention mask
            keeps documents apart.
    """

    def __init__(
        self,
        shard: TokenShard,
        sequence_length: int,
        num_samples: int | None = None,
        seed: int = 0,
        document_mask: bool = False,
    ) -> None:
        self.shard, self.sequence_length, self.seed = shard, sequence_length, seed
        self.document_mask, self.shuffle = document_mask, num_samples is not None
        self.num_blocks = shard.header.num_tokens // sequence_length
        if self.num_blocks == 0:
            raise FoundryError(
                f"{shard.path}: {shard.header.num_tokens} tokens do not fill one sequence; "
                f"sequence_length must be at most that, found {sequence_length}"
            )
        self.num_samples = self.num_blocks if num_samples is None else num_samples
        self._tokens = shard.tokens()
        self._ends = shard.document_ends()

    @property
    def num_corpus_tokens(self) -> int:
        """Tokens of one epoch."""
        return self.num_blocks * self.sequence_length

    def __len__(self) -> int:
        return self.num_samples

    def block_of(self, index: int) -> int:
        """Which block of the shard sample ``index`` is."""
        epoch, position = divmod(index, self.num_blocks)
        return (
            int(shuffled_position(position, self.num_blocks, self.seed, epoch)) if self.shuffle else position
        )

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        start = self.block_of(index) * self.sequence_length
        ids = torch.from_numpy(self._tokens[start : start + self.sequence_length].astype(np.int64))
        item = {"input_ids": ids, "labels": ids.clone()}
        if self.document_mask:
            item["position_ids"] = self._positions(start)
        return item

    def _positions(self, start: int) -> Tensor:
        """0, 1, 2, ... from the start of the block and again from each document start inside it."""
        stop = start + self.sequence_length
        first, last = np.searchsorted(self._ends, [start, stop], side="right")
        starts = np.asarray(self._ends[first:last], dtype=np.int64) - start
        origin = np.zeros(self.sequence_length, dtype=np.int64)
        inside = starts[(starts > 0) & (starts < self.sequence_length)]
        origin[inside] = inside
        return torch.from_numpy(np.arange(self.sequence_length) - np.maximum.accumulate(origin))
