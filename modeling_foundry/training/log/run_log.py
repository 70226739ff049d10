"""What a run writes down while it runs: the lines of the run log, and what is measured for them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from ..processes.endings import UpdateRefusedError
from .gradients import GradientNorms, GradientSizes
from .log_file import LOG_NAME, Line, LogFile, summary_of, timestamp
from .run_facts import distributed_type, memory_now, startup_facts
from .throughput import (
    CHECKPOINT,
    EVALUATION,
    TRAINING,
    ModelFlops,
    RunClock,
    ThroughputMeter,
    TimedBatches,
)

logger = logging.getLogger(__name__)
WHOLE_GRADIENTS = ("NO", "MULTI_GPU", "MULTI_CPU")  # where a rank holds the gradient of every parameter


class RunLog(TrainerCallback):
    """Appends one JSON object per event to ``log.jsonl`` and refuses to go on from a non-finite loss.

    docs/pretrain.md lists the fields.  What is measured here is also put into the ``logs`` that callbacks added
    after this one get, so that trackers show it.

    Args:
        tokens_per_step: tokens of one optimizer step over all ranks; None counts what Trainer counted.
        flops: FLOPs of a token and the device's peak; None logs no MFU.
        facts: what the first line says beside model, optimizer and hardware (run name, settings).
    """

    def __init__(
        self,
        output_dir: str | Path,
        tokens_per_step: int | None = None,
        flops: ModelFlops | None = None,
        facts: dict[str, Any] | None = None,
        clock: RunClock | None = None,
    ) -> None:
        self.path = Path(output_dir) / LOG_NAME
        self.tokens_per_step, self.flops, self.facts = tokens_per_step, flops, facts or {}
        self.clock = clock or RunClock()
        self.meter = ThroughputMeter(self.clock, flops)
        self.norms, self.sizes = GradientNorms(0.0), GradientSizes()
        self.latest: Line = {}
        self._file = LogFile(self.path)
        self._lines: list[Line] = []
        self._times_batches = False
        self._save_began = 0.0
        self._group_rates: list[Any] = []

    def timed(
        self, batches: Iterator[Any], is_device_busy: Callable[[], bool] = lambda: False
    ) -> TimedBatches:
        """``batches``, with the wait for each counted."""
        self._times_batches = True
        return TimedBatches(batches, self.clock, is_device_busy)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.norms = GradientNorms(args.max_grad_norm)
        if state.is_world_process_zero:
            self._lines = self._file.go_on_after(state.global_step)
            if state.global_step and not self._lines:
                logger.warning(
                    "%s: its lines up to step %d are gone; it begins anew there", self.path, state.global_step
                )
            trained = next((line for line in reversed(self._lines) if "loss" in line), {})
            self.latest |= {key: trained[key] for key in ("loss", "learning_rate") if key in trained}
            self.clock.go_on_from(next((x for x in reversed(self._lines) if "training_seconds" in x), {}))
            self._write_start(args, state, kwargs["model"], kwargs.get("optimizer"))
        self.meter.start(*self._last_lap(state))
        if args.eval_on_start:
            self.clock.switch(EVALUATION)

    def _last_lap(self, state: TrainerState) -> tuple[int, int, float | None]:
        """Step, tokens and clock of the newest line with a loss: the next one covers what came since (LogWindow)."""
        trained = next((line for line in reversed(self._lines) if "loss" in line), None)
        if trained is not None and None not in (trained.get("tokens"), trained.get("training_seconds")):
            return trained["step"], trained["tokens"], trained["training_seconds"]
        if any(line.get("event") == "start" and line["step"] == 0 for line in self._lines):
            return 0, 0, 0.0
        return state.global_step, self._tokens(state), None

    def _write_start(self, args: TrainingArguments, state: TrainerState, model: Any, optimizer: Any) -> None:
        step, facts = state.global_step, startup_facts(args, model, optimizer, self.flops)
        facts["batch"]["tokens_per_step"] = self.tokens_per_step
        facts["max_steps"] = state.max_steps
        if step and not any(x.get("event") == "checkpoint" and x["step"] == step for x in self._lines):
            # The process died between a checkpoint and its line.
            self._write(state, {"event": "checkpoint", "path": f"checkpoint-{step}", "save_seconds": None})
        self._write(state, {"event": "resume" if step else "start", **self.facts, **facts})

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.switch(TRAINING)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.clock.switch(TRAINING)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and _will_be_logged(args, state):
            if distributed_type(args) in WHOLE_GRADIENTS:
                self.sizes.measure(kwargs["model"], self.norms)
            optimizer = kwargs.get("optimizer")
            self._group_rates = [group["lr"] for group in optimizer.param_groups] if optimizer else []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._leave_training(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._leave_training(state, control)

    def _leave_training(self, state: TrainerState, control: TrainerControl) -> None:
        if control.should_evaluate:
            self.clock.switch(EVALUATION)
        elif control.should_save:
            self._begin_checkpoint(state)

    def _begin_checkpoint(self, state: TrainerState) -> None:
        self.clock.switch(CHECKPOINT)
        self._save_began = self.clock.now()
        if state.is_world_process_zero:
            self._file.sync()  # a checkpoint must not outlive the lines of its steps

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_save:
            self._begin_checkpoint(state)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        seconds = round(self.clock.now() - self._save_began, 3) if self._save_began else None
        self._save_began = 0.0
        line = {"event": "checkpoint", "path": f"checkpoint-{state.global_step}", "save_seconds": seconds}
        held_out = [x for x in self._lines if x["step"] == state.global_step and "eval_loss" in x]
        if held_out:
            line["eval_loss"] = held_out[-1]["eval_loss"]
        self._write(state, line | self.clock.totals())

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = {} if logs is None else logs
        given = {name: _number(value) for name, value in logs.items()}
        measured: Line = {"event": _event(given), "tokens": self._tokens(state)}
        if measured["event"] == "train":
            measured |= self.meter.lap(state.global_step, measured["tokens"], self._times_batches)
            measured |= self.norms.take() | self.sizes.take() | memory_now(args.device.type)
            rates = [float(rate) for rate in self._group_rates]
            if len(set(rates)) > 1:  # Muon's matrices and AdamW's rest; Trainer logs the first group's
                measured["learning_rates"] = rates
        elif measured["event"] == "evaluation" and "loss" in self.latest:
            measured |= {"train_loss": self.latest["loss"], "learning_rate": self.latest.get("learning_rate")}
        elif measured["event"] == "end":
            measured["summary"] = summary_of(self._lines)
        line = {"step": state.global_step, **given, **measured, **self.clock.totals()}
        logs |= {name: value for name, value in line.items() if name not in logs and _is_scalar(value)}
        self.latest |= line
        self._write(state, line)
        if "eval_loss" in line and args.non_finite == "skip":  # no weight comes from a held-out loss
            self._warn_of_non_finite(state, line["eval_loss"])
        else:
            _refuse_non_finite(line, self.path)

    def _warn_of_non_finite(self, state: TrainerState, loss: float) -> None:
        if state.is_world_process_zero and not math.isfinite(loss):
            logger.warning(
                "%s: step %d: eval_loss is %s; non_finite is skip: the run goes on",
                self.path,
                state.global_step,
                loss,
            )

    def _write(self, state: TrainerState, line: Line) -> None:
        if state.is_world_process_zero:
            line = {"event": line["event"], "step": state.global_step, "time": timestamp(), **line}
            self._lines.append(line)
            self._file.append(line)

    def _tokens(self, state: TrainerState) -> int:
        if self.tokens_per_step is not None:
            return state.global_step * self.tokens_per_step
        return int(state.num_input_tokens_seen)


def _will_be_logged(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether the step now taken ends with a log line, as Trainer's DefaultFlowCallback decides after it."""
    step = state.global_step + 1
    if step == 1 and args.logging_first_step:
        return True
    return args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0


def _event(logs: Line) -> str:
    if "loss" in logs:
        return "train"
    if any(name.startswith("eval_") for name in logs):
        return "evaluation"
    return "end" if "train_runtime" in logs else "note"


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """Trainer formats its log values as text; the log holds numbers."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value.item() if hasattr(value, "item") else value


def _refuse_non_finite(line: Line, path: Path) -> None:
    """End the run, on every rank alike."""
    for name in ("loss", "grad_norm", "eval_loss"):
        value = line.get(name)
        if isinstance(value, float) and not math.isfinite(value):
            on_skip = ", or set non_finite: skip to go on behind it" if name == "eval_loss" else ""
            raise UpdateRefusedError(
                f"{path}: step {line['step']}: {name} is {value}; training stopped before the next checkpoint. "
                f"Lower the learning rate or look at the data, then run again from the last checkpoint{on_skip}",
                line["step"],
            )
