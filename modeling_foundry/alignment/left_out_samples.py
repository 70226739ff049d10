"""Samples of which ``max_length`` leaves nothing to learn: left out, counted, and said before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import Trainer

from ..data.linting.checks import Cut
from ..settings import FoundryError
from .samples import SampleFile, cut_of

PAIR = ["prompt_ids", "chosen_ids", "rejected_ids"]


def leave_out_samples(
    trainer: Trainer, files: Sequence[SampleFile], given: Sequence[Dataset | None]
) -> list[str]:
    """Compare what TRL prepared with what it was given, and drop the pairs that are the same on both sides.

    Args:
        files: of the train and perhaps of the held-out samples.
        given: the data sets TRL was given, in the same order; None for one that is not there.

    Returns:
        A line for each file of which something is left out.

    Raises:
        FoundryError: nothing of a file is left.
    """
    lines = []
    for file, samples, name in zip(files, given, ("train_dataset", "eval_dataset"), strict=False):
        assert samples is not None
        prepared, cut = getattr(trainer, name), cut_of(trainer.args)
        if "input_ids" in prepared.column_names and getattr(trainer.args, "packing", False):
            continue  # rows of many samples
        reasons = {f"nothing to learn is left {cut}": len(samples) - len(prepared)}
        if set(PAIR) <= set(prepared.column_names):
            different = different_pairs(prepared, cut, trainer.args)
            reasons[f"chosen is rejected, token for token, {cut}"] = len(prepared) - len(different)
            setattr(trainer, name, different)
        in_words = " and ".join(f"{count:,} ({reason})" for reason, count in reasons.items() if count)
        if not len(getattr(trainer, name)):
            raise FoundryError(
                f"{file}: all {len(samples):,} samples are left out: {in_words}; raise max_length"
            )
        if in_words:
            lines.append(f"{file.key}: left out of {len(samples):,} samples: {in_words}")
    return lines


def different_pairs(pairs: Dataset, cut: Cut, arguments: Any) -> Dataset:
    """The pairs whose sides, cut as in training, are not the same tokens: the others have no gradient."""
    with arguments.main_process_first(desc="pairs that differ"):  # the others find it in the cache
        return pairs.filter(
            differs, input_columns=PAIR, fn_kwargs={"max_length": cut.max_length, "mode": cut.mode},
            num_proc=arguments.dataset_num_proc, desc="Dropping pairs that are the same on both sides",
        )  # fmt: skip


def differs(
    prompt: list[int], chosen: list[int], rejected: list[int], max_length: int | None, mode: Any
) -> bool:
    """Whether a pair has anything to prefer once it is cut."""
    cut, before = Cut(max_length, mode), len(prompt)
    sides = [
        cut.of({"ids": prompt + side, "mask": [0] * before + [1] * len(side)}) for side in (chosen, rejected)
    ]
    return sides[0] != sides[1]
