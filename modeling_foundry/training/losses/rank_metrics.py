"""TRL's figures of a batch (rewards, accuracies, entropy) as means over pairs and tokens, not over batches.

TRL gathers each figure in every batch and logs the mean of the batches.  Here each rank notes its own, with what it is
a mean of, and the ranks are summed up once, where a line is logged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer

NUM_TOKENS = "num_tokens"  # a running total of each rank, in place of a mean


class AloneOnRank:
    """The accelerator as TRL sees it inside a loss: what it gathers stays this rank's own.

    Ranks may hold different numbers of pairs in a last batch, which a gather cannot join.
    """

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def gather(self, tensor: Any) -> Any:
        return tensor

    gather_for_metrics = gather


class RankMetrics(Trainer):
    """Mix-in before a trainer of TRL; a loss notes its figures with :meth:`noting`."""

    accelerator: Any
    _metrics: dict[str, Any]
    _total_train_tokens: float  # TRL's own; this rank's alone, as each notes its own

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sums: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        super().__init__(*args, **kwargs)

    @contextmanager
    def noting(self, counts: Mapping[str, float], otherwise: float) -> Iterator[None]:
        """What TRL notes inside is this rank's, and counts as often as the batch has of what it is a mean of.

        ``_metrics`` is TRL's own: it has no hook for a figure, and its mean of batches has no weights.

        Args:
            counts: by name of the figure.
            otherwise: for figures that are not named.
        """
        mode = "train" if self.model.training else "eval"
        noted: dict[str, list[float]] = defaultdict(list)
        accelerator, metrics = self.accelerator, self._metrics
        self.accelerator, self._metrics = AloneOnRank(accelerator), {mode: noted}
        try:
            yield
        finally:
            self.accelerator, self._metrics = accelerator, metrics
        for name, values in noted.items():
            if name == NUM_TOKENS:
                self._sums[mode][name] = [values[-1], 1.0]
            elif count := counts.get(name, otherwise):
                total, before = self._sums[mode].get(name, (0.0, 0.0))
                self._sums[mode][name] = [total + values[-1] * count, before + count]
            else:
                self._sums[mode].setdefault(name, [0.0, 0.0])

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        mode = "train" if self.model.training else "eval"
        for name, (total, count) in self._over_ranks(mode).items():
            if count:
                self._metrics[mode][name] = [total if name == NUM_TOKENS else total / count]
        self._sums[mode] = {}
        super().log(logs, *args, **kwargs)

    def figures_so_far(self) -> dict[str, Any]:
        """What a checkpoint keeps of the next line of the log, over all ranks; every rank calls it."""
        num_tokens = torch.tensor(self._total_train_tokens, device=self.args.device)
        total = self.accelerator.reduce(num_tokens, "sum").item()
        return {"sums": self._over_ranks("train"), NUM_TOKENS: total}

    def go_on_from(self, figures: dict[str, Any]) -> None:
        """Put back what :meth:`figures_so_far` gave: sums over all ranks, so that rank 0 holds them."""
        is_main = self.args.process_index == 0
        self._sums["train"] = {
            name: sums if is_main and name != NUM_TOKENS else [0.0, 0.0]
            for name, sums in figures["sums"].items()
        }
        self._total_train_tokens = figures[NUM_TOKENS] if is_main else 0

    def _over_ranks(self, mode: str) -> dict[str, list[float]]:
        names = sorted(self._sums[mode])
        if not names:
            return {}
        both = torch.tensor(
            [self._sums[mode][name] for name in names], device=self.args.device, dtype=torch.float64
        )
        return dict(zip(names, self.accelerator.reduce(both, "sum").tolist(), strict=True))
