"""What a run has read of each source of its mixture, to the sequence, whenever it saves and when it stops."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.sequences.mixture import MixedDataset
from ..data.sequences.sample_order import SampleOrder


class MixtureAccount(TrainerCallback):
    """Prints one line.  Shares are exact over whole periods only, so the weights do not say it.

    Args:
        order: which samples each step reads; those a rolled-back spike left out are not counted.
    """

    def __init__(self, dataset: MixedDataset, order: SampleOrder) -> None:
        self._dataset, self._order, self._said = dataset, order, -1

    def line(self, step: int) -> str:
        """What the steps up to this one have read."""
        return f"step {step:,}: {self._dataset.accounting(self._order.ranges_read(step))}"

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Beside each checkpoint."""
        if state.is_world_process_zero and state.global_step != self._said:
            self._said = state.global_step
            tqdm.write(self.line(state.global_step))  # above the bar

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """At the end, wherever that is, unless it was saved there."""
        self.on_save(args, state, control, **kwargs)
