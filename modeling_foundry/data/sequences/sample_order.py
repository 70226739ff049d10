"""Which samples an optimizer step reads: a function of the step alone, whatever ranks, workers or restarts.

Pretraining reads its dataset in order (the dataset itself is shuffled), ``sequences_per_step`` samples a step.  A
rolled-back spike leaves samples out: what comes after it moves on by as many.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from ...files import write_atomically
from ...settings import FoundryError

ORDER_NAME = "sample_order.json"


@dataclass(frozen=True)
class SampleOrder:
    """Samples of each step.

    Args:
        sequences_per_step: micro-batch x accumulation x ranks.
        left_out: (step, number of samples never read) in the order of their steps; step is the first one (from 1)
            that reads past them.
    """

    sequences_per_step: int
    left_out: tuple[tuple[int, int], ...] = ()

    def samples(self, step: int) -> range:
        """Sample indices of optimizer step ``step``, counted from 1."""
        first = (step - 1) * self.sequences_per_step + self._num_left_out(step)
        return range(first, first + self.sequences_per_step)

    def ranges_read(self, steps: int) -> list[range]:
        """What the first ``steps`` optimizer steps read, in order: all samples but those left out."""
        if steps < 1:
            return []
        firsts = sorted({1, *(step for step, _ in self.left_out if step <= steps)})
        lasts = [*(first - 1 for first in firsts[1:]), steps]
        return [
            range(self.samples(first).start, self.samples(last).stop)
            for first, last in zip(firsts, lasts, strict=True)
        ]

    def num_samples(self, max_steps: int) -> int:
        """Samples a run of ``max_steps`` walks over, those left out included."""
        return self.samples(max_steps).stop

    def without(self, step: int, num_steps: int) -> SampleOrder:
        """The order that never reads what the ``num_steps`` steps from ``step`` on would have read.

        Samples left out earlier stay left out: the step that reads past them comes ``num_steps`` sooner.
        """
        moved = [
            (max(step, first - num_steps) if first > step else first, number)
            for first, number in self.left_out
        ]
        left_out = sorted([*moved, (step, num_steps * self.sequences_per_step)])
        return replace(self, left_out=tuple(left_out))

    def begins_as(self, earlier: SampleOrder, step: int) -> bool:
        """Whether steps up to ``step`` read what they read in ``earlier``, and nothing left out there is back."""
        return (
            self.sequences_per_step == earlier.sequences_per_step
            and self.ranges_read(step) == earlier.ranges_read(step)
            and len(self.left_out) >= len(earlier.left_out)
        )

    def num_sequences(self, num_samples: int) -> int:
        """How many of the first ``num_samples`` samples are read: those left out are not."""
        left_out = 0
        for step, number in self.left_out:
            if (step - 1) * self.sequences_per_step + left_out < num_samples:
                left_out += number
        return num_samples - left_out

    def _num_left_out(self, step: int) -> int:
        return sum(number for first_step, number in self.left_out if first_step <= step)


class OrderedSamples(Dataset):
    """The dataset from step ``first_step`` on, so that a resumed run seeks instead of walking over what it read.

    Its length is what the whole run reads, whatever ``first_step`` is; indices past the end are never reached.
    """

    def __init__(self, dataset: Any, order: SampleOrder, first_step: int = 1) -> None:
        self.dataset, self.order, self.first_step = dataset, order, first_step

    def __len__(self) -> int:
        return self.order.num_sequences(len(self.dataset))

    def __getitem__(self, index: int) -> Any:
        steps, place = divmod(index, self.order.sequences_per_step)
        return self.dataset[self.order.samples(self.first_step + steps)[place] % len(self.dataset)]


def write_order(output_dir: Path, order: SampleOrder) -> None:
    write_atomically(output_dir / ORDER_NAME, json.dumps(asdict(order)) + "\n")


def read_order(output_dir: Path) -> SampleOrder | None:
    """The order a run was started with; None where none was written.

    Raises:
        FoundryError: the file is not one of ours.
    """
    path = output_dir / ORDER_NAME
    try:
        return order_from(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoundryError(
            f"{path}: not a sample order; take it from a checkpoint of the run (sample_order in its manifest.json)"
        ) from error


def order_from(content: Any) -> SampleOrder:
    """An order as JSON holds it.

    Raises:
        ValueError, KeyError, TypeError: it is none.
    """
    left_out = tuple(sorted((int(step), int(number)) for step, number in content["left_out"]))
    order = SampleOrder(int(content["sequences_per_step"]), left_out)
    if order.sequences_per_step < 1 or any(step < 1 or number < 1 for step, number in left_out):
        raise ValueError("counts from 1 on were expected")
    return order


def check_order(output_dir: Path, seal: dict[str, Any], checkpoint: Path) -> None:
    """Raise FoundryError unless the run's order still holds for the steps up to ``checkpoint``."""
    path, stored = output_dir / ORDER_NAME, seal.get("sample_order")
    order = read_order(output_dir)
    if stored is None and order is None:
        return  # fine-tuning
    try:
        earlier = order_from(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise FoundryError(
            f"{checkpoint / 'manifest.json'}: not a sample order in sample_order; restore the checkpoint"
        ) from error
    if order is None:
        raise FoundryError(f"{path}: missing; take it from sample_order in {checkpoint}/manifest.json")
    if not order.begins_as(earlier, seal["global_step"]):
        raise FoundryError(
            f"{path}: not the order of samples that {checkpoint.name} was trained in; take it from sample_order in "
            f"{checkpoint}/manifest.json"
        )
