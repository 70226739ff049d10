"""The samples that accelerate repeats at the end of an epoch, so that every rank gets a batch: not counted again.

Ranks need as many batches of the same size each, so the last ones are filled up with samples from the front.  A mean
over them would weigh those twice, and change with the number of ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ...model.losses import IGNORE_INDEX

ROW_LENGTHS = "row_lengths"
REPEATED = "is_repeated"


def num_own_samples(trainer: Trainer, num_samples: int, per_rank: int) -> int:
    """How many samples of the batch that the data loader gave last are no repeats; they come first.

    Args:
        num_samples: in this rank's batch.
        per_rank: samples of a full batch of one rank.
    """
    arguments, state = trainer.args, trainer.accelerator.gradient_state
    config = arguments.accelerator_config
    if arguments.world_size == 1 or not state.end_of_dataloader or not config.even_batches:
        return num_samples
    batch = per_rank if config.split_batches else per_rank * arguments.world_size
    left = len(state.active_dataloader.dataset) % batch or batch
    if trainer.model.training and arguments.dataloader_drop_last:
        return num_samples  # the incomplete batch was left out
    return min(max(left - arguments.process_index * num_samples, 0), num_samples)


class RowLengths:
    """A collator whose batches say how long each row is, for those that lay all rows into one (padding-free)."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return self.collate(rows) | {ROW_LENGTHS: torch.tensor([len(row["input_ids"]) for row in rows])}


def without_repeated_labels(trainer: Trainer, batch: dict[str, Any], per_rank: int) -> dict[str, Any]:
    """A batch with ``labels`` (B, S), or (1, all tokens) with the rows' lengths: repeats have nothing to learn."""
    batch = dict(batch)
    lengths: Tensor | None = batch.pop(ROW_LENGTHS, None)
    labels: Tensor = batch["labels"]
    num_samples = labels.size(0) if lengths is None else lengths.numel()
    own = num_own_samples(trainer, num_samples, per_rank)
    if own < num_samples:
        batch["labels"] = labels = labels.clone()
        if lengths is None:
            labels[own:] = IGNORE_INDEX
        else:
            labels[:, int(lengths[:own].sum()) :] = IGNORE_INDEX
    return batch


def without_repeated_pairs(trainer: Trainer, batch: dict[str, Any], per_rank: int) -> dict[str, Any]:
    """A batch of pairs, all chosen (B, S) and then all rejected answers: repeated pairs are cut off.

    A rank that has nothing else keeps one, as every rank must take part in the pass, marked ``REPEATED``.
    """
    num_pairs = batch["completion_mask"].size(0) // 2
    own = num_own_samples(trainer, num_pairs, per_rank)
    if own == num_pairs:
        return batch
    kept = torch.arange(max(own, 1), device=batch["completion_mask"].device)
    both = torch.cat([kept, kept + num_pairs])
    cut = {name: value[both if value.size(0) == 2 * num_pairs else kept] for name, value in batch.items()}
    return cut if own else {**cut, REPEATED: True}
