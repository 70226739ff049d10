"""What a checkpoint cuts in two: the sums that become the next line of the log.

A line is a mean over ``logging_steps`` steps, and a checkpoint (that of a signal above all) may lie between two lines.
A resumed run whose sums began at zero would log another loss there than the unbroken run.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...files import write_atomically
from ...settings import FoundryError
from ..losses.rank_metrics import RankMetrics

LOG_WINDOW_NAME = "log_window.json"
logger = logging.getLogger(__name__)


class LogWindow(TrainerCallback):
    """Part of a checkpoint: loss and z-loss of each rank, gradient norms and TRL's figures since the last line."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.content: dict[str, Any] | None = None

    def save(self, folder: Path) -> None:
        trainer = self.trainer
        run_log, z_loss = trainer.run_log, trainer.z_loss
        content = {
            "since_step": trainer._globalstep_last_logged,
            "losses": self._of_ranks(trainer._tr_loss),
            "z_since_step": z_loss.since_step,
            "z_losses": None if z_loss.total is None else self._of_ranks(z_loss.total),
            "grad_norms": [] if run_log is None else run_log.norms.numbers(),
            "figures": trainer.figures_so_far() if isinstance(trainer, RankMetrics) else None,
        }
        if trainer.is_world_process_zero():
            write_atomically(folder / LOG_WINDOW_NAME, json.dumps(content) + "\n")

    def _of_ranks(self, total: Tensor) -> list[float]:
        return self.trainer.accelerator.gather(total.detach().reshape(1)).tolist()

    def load(self, folder: Path) -> None:
        """Read it now; it is put back once Trainer has set its sums to zero."""
        path = folder / LOG_WINDOW_NAME
        try:
            self.content = json.loads(path.read_text())
        except FileNotFoundError:  # the seal does not name it, or this start would not have come here
            logger.warning("%s: of an earlier release; the next line of the log covers fewer steps", folder)
        except (OSError, ValueError) as error:
            raise FoundryError(
                f"{path}: no sums of the log to go on from ({error}); restore the checkpoint"
            ) from error
        self.trainer.add_callback(self)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trainer, content = self.trainer, self.content
        if content is None:
            return
        trainer._globalstep_last_logged = content["since_step"]
        trainer._tr_loss = self._of_rank(content["losses"], args)
        if content["z_losses"] is not None:
            trainer.z_loss.since_step = content["z_since_step"]
            trainer.z_loss.total = self._of_rank(content["z_losses"], args)
        if isinstance(trainer, RankMetrics) and content.get("figures"):  # none in an earlier release's
            trainer.go_on_from(content["figures"])
        if (run_log := trainer.run_log) is not None:
            for norm in content["grad_norms"]:
                run_log.norms.add(norm)

    def _of_rank(self, totals: list[float], args: TrainingArguments) -> Tensor:
        """Its own sum, or what each has on average where there were other ranks."""
        same_ranks = len(totals) == args.world_size
        total = totals[args.process_index] if same_ranks else sum(totals) / len(totals)
        return torch.tensor(total, device=args.device)
