"""No update from a loss or gradient that is not finite, on any back end; loss spikes by policy.

Every rank gathers (loss, gradient norm, signal) once per optimizer step, before the update, and all reach the same
verdict.  Plain, DDP and FSDP2 training drop the gradients of a refused update: torch's optimizers pass over
parameters without one, so weights, moments and step counters keep their bits.  DeepSpeed steps inside backward:
there the verdict answers its own overflow check.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...data.sequences.sample_order import SampleOrder
from ...files import write_atomically
from ...settings import FoundryError, setting
from ..processes.endings import PreemptedError, UpdateRefusedError
from .loss_spikes import LossWindow, SpikeFoundError

SKIPPED_NAME = "skipped_updates.jsonl"
STATE_NAME = "update_guard.json"


@dataclass
class GuardKeys:
    """Keys of a recipe that say what happens when something goes wrong."""

    non_finite: Literal["stop", "skip"] = setting(
        "a NaN or Inf in a loss or gradient: end the run, or go on without that update", "stop", neutral=True
    )
    loss_spike: Literal["off", "skip", "rollback"] = setting(
        "a loss far above the last ones: leave its update out, or go back to a checkpoint",
        "off",
        neutral=True,
    )
    spike_window_steps: int = setting("losses that a spike is judged against", 128, neutral=True)
    spike_deviations: float = setting(
        "robust standard deviations above the window's median that make a spike", 6.0, neutral=True
    )
    max_skipped_steps: int = setting(
        "updates left out one after the other before the run stops", 10, neutral=True
    )
    max_rollbacks: int = setting("rollbacks of a run before it stops", 3, neutral=True)
    rollback_steps: int = setting(
        "a rollback leaves out the samples of the spike's step and of the steps before it", 1, neutral=True
    )
    stall_timeout_seconds: float = setting(
        "a rank without progress for so long ends all ranks, with words", 900.0, neutral=True
    )
    logging_nan_inf_filter: bool = setting(
        "true would log the mean in place of a loss that is NaN: refused", False, neutral=True
    )


@dataclass(frozen=True)
class Vote:
    """What one rank says of a step before its update: mean loss, gradient norm (0 where unknown), signal seen."""

    loss: float
    gradient_norm: float
    is_signalled: float


class UpdateGuard(TrainerCallback):
    """Judges each optimizer step before its update and keeps the window of losses through a resume.

    Args:
        order: which samples a step reads; None where that is not known (fine-tuning).
        num_ranks, micro_batch: how a step's samples are dealt out: micro-batch m of rank r takes the m * ranks + r
            -th ``micro_batch`` samples.
    """

    def __init__(
        self, keys: Any, output_dir: str | Path, order: SampleOrder | None, num_ranks: int, micro_batch: int
    ) -> None:
        if order is None and keys.loss_spike == "rollback":
            raise FoundryError(
                "loss_spike: rollback is for pretraining, whose samples are known; expected off or skip"
            )
        self.keys, self.output_dir, self.order = keys, Path(output_dir), order
        self.num_ranks, self.micro_batch = num_ranks, micro_batch
        self.window = LossWindow(keys.spike_window_steps, keys.spike_deviations)
        self.num_in_a_row = 0
        self.is_signalled = False  # by this rank's signal handler
        self.all_signalled = False  # agreed with the vote of a step
        self.owes_evaluation = False  # put off because of the signal
        self.losses: list[torch.Tensor] = []  # of this step's micro-batches, on the device
        self.mark: Callable[[int, str], None] = lambda step, doing: (
            None
        )  # the heartbeat's, where there is one

    # ------------------------------------------------------------------ the verdict

    def applies(self, trainer: Trainer, gradient_norm: torch.Tensor | float) -> bool:
        """Whether the update of this step is applied; the same answer on every rank.

        Raises:
            UpdateRefusedError: the policy is to stop, or too many updates in a row were left out.
            SpikeFoundError: the policy is to roll back.
            PreemptedError: the same, and a signal came too.
        """
        step, micro = trainer.state.global_step + 1, torch.stack(self.losses).float()
        self.losses = []
        votes = self._votes(trainer, micro, gradient_norm)
        self.all_signalled = self.all_signalled or any(vote.is_signalled for vote in votes)
        loss = sum(vote.loss for vote in votes) / len(votes)
        reason = self._fault(votes, loss)
        if reason is None and loss <= (limit := self.window.limit()):
            self.window.add(loss)
            self.num_in_a_row = 0
            return True
        if reason is not None:
            self._refuse(trainer, step, reason, micro, must_stop=self.keys.non_finite == "stop")
            return False
        if self.keys.loss_spike == "off":
            self.window.add(loss)
            return True
        reason = f"loss {loss:.4f} is above {limit:.4f}"
        if self.keys.loss_spike == "rollback":
            self._record(trainer, step, reason, micro)
            if self.all_signalled:  # the grace period is short: the next start meets the spike again
                raise PreemptedError(
                    f"{self.output_dir}: a signal ended the run at step {step} ({reason}); run the same command "
                    "again to go on",
                    step - 1,
                )
            raise SpikeFoundError(step, loss, limit)
        self._refuse(trainer, step, reason, micro, must_stop=False)
        return False

    def refuse_gradient(self, trainer: Trainer, norm: float) -> None:
        """DeepSpeed refused a gradient whose norm is not finite though every element is: the same on all ranks."""
        step = trainer.state.global_step + 1
        self._refuse(
            trainer, step, f"gradient norm is {norm}", None, must_stop=self.keys.non_finite == "stop"
        )

    def _votes(self, trainer: Trainer, micro: torch.Tensor, norm: torch.Tensor | float) -> list[Vote]:
        if hasattr(norm, "full_tensor"):  # FSDP2: a DTensor
            norm = norm.full_tensor()
        self.mark(trainer.state.global_step, "before the next update")
        norm = torch.as_tensor(norm, dtype=torch.float32, device=micro.device).reshape(())
        signal = torch.full_like(norm, float(self.is_signalled))
        mine = torch.stack([micro.sum(), norm, signal])
        return [Vote(*row) for row in trainer.accelerator.gather(mine[None]).tolist()]  # the one host sync

    @staticmethod
    def _fault(votes: Sequence[Vote], loss: float) -> str | None:
        bad = [f"rank {rank}" for rank, vote in enumerate(votes) if not math.isfinite(vote.loss)]
        if bad:
            return f"loss is {loss} on {', '.join(bad)}"
        norm = next((v.gradient_norm for v in votes if not math.isfinite(v.gradient_norm)), None)
        return None if norm is None else f"gradient norm is {norm}"

    def _refuse(
        self, trainer: Trainer, step: int, reason: str, micro: torch.Tensor | None, must_stop: bool
    ) -> None:
        self._record(trainer, step, reason, micro)
        self.num_in_a_row += 1
        too_many = self.num_in_a_row > self.keys.max_skipped_steps
        if must_stop or too_many:
            why = "the update was not applied and nothing of this step is saved"
            if not must_stop:
                why = f"max_skipped_steps: {self.num_in_a_row - 1} updates before it were left out as well"
            raise UpdateRefusedError(
                f"{self.output_dir}: step {step}: {reason}; {why}; {self._samples_in_words(step)}",
                step - 1,
            )

    # ------------------------------------------------------------------ what is written down

    def _record(self, trainer: Trainer, step: int, reason: str, micro: torch.Tensor | None) -> None:
        """One line per rank whose loss is at fault, or one for the whole step, appended atomically by rank 0."""
        by_rank: list[list[float]] = []
        if micro is not None:
            by_rank = trainer.accelerator.gather(micro[None]).tolist()
        if not trainer.is_world_process_zero():
            return
        common = {"step": step, "reason": reason}
        lines: list[dict[str, Any]] = [
            {**common, "rank": rank, "samples": self._samples_of(step, rank, bad)}
            for rank, losses in enumerate(by_rank)
            if (bad := [place for place, loss in enumerate(losses) if not math.isfinite(loss)])
        ]
        whole = None if self.order is None else list(self.order.samples(step))
        append_lines(self.output_dir / SKIPPED_NAME, lines or [{**common, "rank": None, "samples": whole}])

    def _samples_of(self, step: int, rank: int, places: list[int]) -> list[int] | None:
        if self.order is None:
            return None
        samples, size = self.order.samples(step), self.micro_batch
        starts = [(place * self.num_ranks + rank) * size for place in places]
        return [index for start in starts for index in samples[start : start + size]]

    def _samples_in_words(self, step: int) -> str:
        if self.order is None:  # SFT and DPO: the library shuffles
            return "which samples it read is recorded in pretraining alone"
        samples = self.order.samples(step)
        shows = f"recipes/pretrain.py replay --run_dir {self.output_dir} --step {step} shows them"
        return f"samples {samples.start} to {samples.stop - 1} ({shows})"

    # ------------------------------------------------------------------ hooks

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.all_signalled:  # the grace period is short: save now, evaluate after the restart
            self.owes_evaluation = control.should_evaluate
            control.should_save, control.should_evaluate, control.should_training_stop = True, False, True


class GuardWindow:
    """Part of a checkpoint: the losses that spikes are judged against, and what the guard still owes."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def save(self, folder: Path) -> None:
        guard = self.trainer.guard
        if self.trainer.is_world_process_zero():
            content = {
                "losses": list(guard.window.losses),
                "num_skipped_in_a_row": guard.num_in_a_row,
                "owes_evaluation": guard.owes_evaluation,
            }
            write_atomically(folder / STATE_NAME, json.dumps(content) + "\n")

    def load(self, folder: Path) -> None:
        guard = self.trainer.guard
        losses, guard.num_in_a_row, _ = read_guard_state(folder)
        guard.window.losses.extend(losses)


def owes_evaluation(checkpoint: Path) -> bool:
    """Whether a signal ended the run at this checkpoint before an evaluation that was due."""
    return read_guard_state(checkpoint)[2]


def read_guard_state(checkpoint: Path) -> tuple[list[float], int, bool]:
    """Losses of the window, updates left out in a row, and whether an evaluation was put off till now.

    Raises:
        FoundryError: it cannot be read.
    """
    path = checkpoint / STATE_NAME
    try:
        content = json.loads(path.read_text())
        losses = [float(loss) for loss in content["losses"]]
        return losses, int(content["num_skipped_in_a_row"]), bool(content.get("owes_evaluation", False))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FoundryError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); remove {checkpoint.name} to go on from "
            "the checkpoint before it"
        ) from error


def append_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Add JSON lines to a file that is whole at every moment."""
    before = path.read_text() if path.exists() else ""
    write_atomically(path, before + "".join(json.dumps(line) + "\n" for line in lines))
