"""The losses of SFT and DPO, summed over tokens or pairs, ranks and accumulation, and divided once.

A step of two ranks of two samples, of one rank of four and of two micro-batches of two is the same step: each part of
a loss is a mean over what it is defined on, tokens (SFT, and DPO's ``sft``) or pairs (the rest of DPO's), of the whole
step.  TRL takes the mean of the micro-batches' means where it is not told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..settings import FoundryError
from ..training.losses.held_out_loss import HeldOutLoss, HeldOutTokens, num_learned
from ..training.losses.rank_metrics import RankMetrics
from ..training.losses.repeated_samples import (
    REPEATED,
    RowLengths,
    without_repeated_labels,
    without_repeated_pairs,
)

SORTED_LOSSES = ("aot", "aot_unpaired")
TOKEN_LOSS = "sft"


def check_loss_options(arguments: Any) -> None:
    """Raise FoundryError for options under which a loss would be another one on other ranks or batches."""
    types = getattr(arguments, "loss_type", None)
    if isinstance(types, str) or types is None:
        return
    if TOKEN_LOSS in types and arguments.use_weighting:
        raise FoundryError(
            f"use_weighting: weights pairs, and {TOKEN_LOSS} in loss_type is a mean over tokens; leave one out"
        )
    batches = arguments.world_size * arguments.gradient_accumulation_steps
    for name in SORTED_LOSSES:
        if name in types and batches > 1:
            raise FoundryError(
                f"loss_type: {name} sorts all pairs of a step, and {arguments.world_size} rank(s) x "
                f"{arguments.gradient_accumulation_steps} micro-batches each sort their own; give one rank and "
                "gradient_accumulation_steps: 1"
            )


class SFTLoss(RankMetrics, HeldOutTokens):
    """Mix-in before SFTTrainer: a step is the mean over its learned tokens."""

    data_collator: Any
    padding_free: bool  # of SFTTrainer

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.padding_free:
            self.data_collator = RowLengths(self.data_collator)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The micro-batches of a step, and its learned tokens over all ranks.

        Trainer counts a row's first token too, which nothing predicts, where a class's name does not end as it knows.
        """
        size = self.args.train_batch_size
        batches = [
            without_repeated_labels(self, batch, size) for batch in islice(epoch_iterator, num_batches)
        ]
        if not batches:
            return batches, None
        count = torch.stack([num_learned(batch["labels"]) for batch in batches]).sum().to(device)
        return batches, self.accelerator.reduce(count, "sum")

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with self.noting({}, otherwise=int(num_learned(inputs["labels"]))):
            return super().compute_loss(model, inputs, *args, **kwargs)


class FirstOutputs:
    """A model that keeps what its first call returned."""

    def __init__(self, model: Any) -> None:
        self.model, self.outputs = model, None  # type: Any, Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.model(*args, **kwargs)
        self.outputs = outputs if self.outputs is None else self.outputs
        return outputs


class DPOLoss(RankMetrics, HeldOutLoss):
    """Mix-in before DPOTrainer: a step is the mean over its pairs, ``sft`` over the tokens of their chosen answers."""

    loss_is_scaled_for_ga = True  # Trainer is not to divide by the micro-batches again
    loss_types: list[str]  # of DPOTrainer, as its weights
    loss_weights: list[float]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        parts = list(zip(self.loss_types, self.loss_weights, strict=True))
        # TRL computes the losses of pairs, and the loss of tokens is taken from the same log-probabilities here.
        self.loss_types = [name for name, _ in parts if name != TOKEN_LOSS]
        self.loss_weights = [weight for name, weight in parts if name != TOKEN_LOSS]
        self.token_weight = sum(weight for name, weight in parts if name == TOKEN_LOSS)
        self._refuse_sorted_evaluation()

    def _refuse_sorted_evaluation(self) -> None:
        sorts = [name for name in SORTED_LOSSES if name in self.loss_types]
        if sorts and self.eval_dataset is not None and len(self.eval_dataset) > self.args.eval_batch_size:
            raise FoundryError(
                f"loss_type: {sorts[0]} sorts all pairs, so its held-out loss needs them in one batch; give a "
                f"per_device_eval_batch_size of {len(self.eval_dataset)}, or fewer by max_eval_samples"
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The micro-batches of a step, and the pairs and chosen tokens (2,) it has over all ranks."""
        size = self.args.train_batch_size
        batches = [without_repeated_pairs(self, batch, size) for batch in islice(epoch_iterator, num_batches)]
        if not batches:
            return batches, None
        counts = [torch.stack([num_pairs(batch), num_tokens(batch)[0]]) for batch in batches]
        return batches, self.accelerator.reduce(torch.stack(counts).sum(0).to(device), "sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        pairs, (chosen, rejected) = num_pairs(inputs), num_tokens(inputs)
        recorder = FirstOutputs(model)
        with self.noting(_counts_of(int(pairs), int(chosen), int(rejected)), otherwise=int(pairs)):
            inputs = {name: value for name, value in inputs.items() if name != REPEATED}
            of_pairs = super().compute_loss(recorder, inputs)
        of_tokens = chosen_loss(recorder.outputs.log_probs, inputs["completion_mask"])
        of_pairs = torch.as_tensor(of_pairs, device=of_tokens.device)  # 0.0 where loss_type is sft alone
        loss = self._of_step(of_pairs, pairs, of_tokens, chosen, num_items_in_batch)
        return (loss, recorder.outputs) if return_outputs else loss

    def _of_step(
        self, of_pairs: Tensor, pairs: Tensor, of_tokens: Tensor, chosen: Tensor, step: Any
    ) -> Tensor:
        """This micro-batch's share of the step's loss, times the ranks over which DDP takes the mean."""
        if not self.model.training:
            self.held_out.add("pairs", of_pairs * pairs, pairs)
            if self.token_weight:
                self.held_out.add("tokens", of_tokens, chosen, self.token_weight)
            step = (pairs, chosen)
        ranks = self.accelerator.num_processes if self.model.training else 1
        loss = of_pairs * (pairs * ranks / step[0].clamp(min=1))
        if self.token_weight:
            loss = loss + of_tokens * (chosen > 0) * ranks / step[1].clamp(min=1) * self.token_weight
        return loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> Any:
        inputs = without_repeated_pairs(self, self._prepare_inputs(inputs), self.args.eval_batch_size)
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


def num_pairs(batch: dict[str, Any]) -> Tensor:
    """Pairs of a batch that count."""
    mask: Tensor = batch["completion_mask"]
    return torch.tensor(0 if batch.get(REPEATED) else mask.size(0) // 2, device=mask.device)


def num_tokens(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Tokens of the chosen and of the rejected answers of a batch, as far as they count."""
    mask = batch["completion_mask"][:, 1:]
    if batch.get(REPEATED):
        mask = torch.zeros_like(mask)
    chosen, rejected = mask.chunk(2)
    return chosen.sum(), rejected.sum()


def chosen_loss(log_probs: Tensor, completion_mask: Tensor) -> Tensor:
    """Summed loss of the chosen answers, of log-probabilities (2 B, S - 1 or more) and the mask (2 B, S)."""
    mask = completion_mask[:, 1:].chunk(2)[0].bool()
    return -log_probs[:, -mask.size(1) :].chunk(2)[0][mask].sum()


def _counts_of(pairs: int, chosen: int, rejected: int) -> dict[str, int]:
    """Of what each figure of DPO is a mean; those that are not named are means over pairs."""
    return {
        "entropy": chosen + rejected,
        "mean_token_accuracy": chosen,
        "logits/chosen": chosen,
        "logits/rejected": rejected,
    }
