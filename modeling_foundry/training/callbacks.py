"""What a run tells while it runs: one progress line, one JSON-lines log, tokens per second."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..settings import FoundryError

LOG_NAME = "log.jsonl"


class StepClock:
    """Seconds spent training: evaluation and checkpoint time are left out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def read(self) -> float:
        running = time.perf_counter() - self._since if self._since is not None else 0.0
        return self.seconds + running

    def pause(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # queued kernels belong to training, not to what comes next
        self.seconds, self._since = self.read(), None


class RunLog(TrainerCallback):
    """Appends one JSON object per log event to ``log.jsonl`` and refuses to go on from a non-finite loss.

    Fields: step, loss, learning_rate, grad_norm, tokens (seen by all ranks since the start of the run),
    tokens_per_second (all ranks, over the steps since the last line, evaluation and saving excluded),
    step_seconds, and whatever else the trainer reports (eval_loss, rewards/accuracies, ...).

    Args:
        tokens_per_step: tokens of one optimizer step over all ranks; None counts what Trainer counted.
    """

    def __init__(self, output_dir: str | Path, tokens_per_step: int | None = None) -> None:
        self.path = Path(output_dir) / LOG_NAME
        self.tokens_per_step = tokens_per_step
        self.clock = StepClock()
        self.latest: dict[str, Any] = {}
        self._last = (0, 0.0, 0)  # step, seconds, tokens of the previous line

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _drop_lines_after(self.path, state.global_step)
        self._last = (state.global_step, 0.0, self._tokens(state))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_evaluate or control.should_save:
            self.clock.pause()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        line = {"step": state.global_step, **{name: _number(value) for name, value in (logs or {}).items()}}
        if "loss" in line:
            line |= self._rates(state)
        self.latest = line
        if state.is_world_process_zero:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        _refuse_non_finite(line, self.path)

    def _rates(self, state: TrainerState) -> dict[str, Any]:
        now = (state.global_step, self.clock.read(), self._tokens(state))
        steps, seconds, tokens = (new - old for new, old in zip(now, self._last, strict=True))
        self._last = now
        rates: dict[str, Any] = {"tokens": now[2], "training_seconds": round(now[1], 3)}
        if steps > 0 and seconds > 0:
            rates |= {"step_seconds": seconds / steps, "tokens_per_second": tokens / seconds}
        return rates

    def _tokens(self, state: TrainerState) -> int:
        if self.tokens_per_step is not None:
            return state.global_step * self.tokens_per_step
        return int(state.num_input_tokens_seen)


def _drop_lines_after(path: Path, step: int) -> None:
    """A resumed run repeats the steps after its checkpoint: their old lines go, so no step stands twice."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    path.write_text("".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return math.inf  # the torn last line of a killed run


def _number(value: Any) -> Any:
    """Trainer formats its log values as text; the log holds numbers."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value.item() if hasattr(value, "item") else value


def _refuse_non_finite(line: dict[str, Any], path: Path) -> None:
    for name in ("loss", "grad_norm", "eval_loss"):
        value = line.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            raise FoundryError(
                f"{path}: step {line['step']}: {name} is {value}; training stopped before the next checkpoint. "
                "Lower the learning rate or look at the data, then run again from the last checkpoint"
            )


class ProgressLine(TrainerCallback):
    """One tqdm bar for the run, with the newest loss, learning rate and tokens per second beside it."""

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
                mininterval=interval, maxinterval=interval, dynamic_ncols=True,
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
            self.bar.set_postfix_str(_summary(self.log.latest), refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()


def _summary(line: dict[str, Any]) -> str:
    shown = {
        "loss": ("loss", "{:.3f}"),
        "eval_loss": ("held-out loss", "{:.3f}"),
        "rewards/accuracies": ("accuracy", "{:.2f}"),
        "learning_rate": ("lr", "{:.1e}"),
        "tokens_per_second": ("tok/s", "{:,.0f}"),
    }
    return ", ".join(
        f"{name} {form.format(line[key])}" for key, (name, form) in shown.items() if line.get(key) is not None
    )
