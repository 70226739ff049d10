"""The progress line of a run."""

from __future__ import annotations

import sys
from itertools import accumulate
from typing import Any

from tqdm.auto import tqdm
from tqdm.utils import disp_len
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .log_file import Line
from .run_log import RunLog

BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
MORE_TIME = 6  # characters that 0:59<9:59 may yet gain


class ProgressLine(TrainerCallback):
    """One tqdm bar for the run, with the newest losses, rates, memory and data wait beside it."""

    def __init__(self, log: RunLog, title: str) -> None:
        self.log, self.title = log, title
        self.bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            interval = 0.5 if sys.stderr.isatty() else 15.0
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.title, unit="step",
                mininterval=interval, maxinterval=interval, dynamic_ncols=True, bar_format=BAR,
            )  # fmt: skip

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(_fitting(self.bar, _facts(self.log.latest))), refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def _fitting(bar: tqdm, facts: list[str]) -> list[str]:
    """The first of them that the terminal's width holds; tqdm would cut the line in the middle of a word."""
    state = bar.format_dict
    if state["ncols"] is None:  # a file
        return facts
    room = state["ncols"] - disp_len(bar.format_meter(**state | {"ncols": None, "postfix": None})) - MORE_TIME
    widths = accumulate(len(", ") + len(fact) for fact in facts)
    return [fact for fact, width in zip(facts, widths, strict=True) if width <= room]


def _facts(line: Line) -> list[str]:
    """The newest figures, the most important first."""
    shown = {
        "loss": ("loss {:.3f}", 1),
        "eval_loss": ("held-out {:.3f}", 1),
        "rewards/accuracies": ("accuracy {:.2f}", 1),
        "tokens_per_second": ("{:,.0f} tok/s", 1),
        "mfu": ("MFU {:.1f}%", 100),
        "grad_norm": ("grad norm {:.2f}", 1),
        "learning_rate": ("lr {:.1e}", 1),
        "memory_peak_bytes": ("{:.1f} GiB", 2**-30),
    }
    parts = [
        form.format(line[key] * scale) for key, (form, scale) in shown.items() if line.get(key) is not None
    ]
    if line.get("data_wait_seconds") is not None and line.get("step_seconds"):
        parts.append(f"data wait {100 * line['data_wait_seconds'] / line['step_seconds']:.1f}%")
    return parts
