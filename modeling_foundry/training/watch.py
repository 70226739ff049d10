"""Training under watch: signals, lost ranks and refused updates all end a run with one line and a code."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..run_record import masked
from .processes.endings import (
    SIGNALS,
    STOPPED_NAME,
    PreemptedError,
    RankLostError,
    RunStoppedError,
    SaveFailedError,
    say,
)
from .processes.ranks import leave_at_exit, wait_for_all_ranks
from .safety.heartbeat import FINISHED, FOLDER_NAME, LOST, Heartbeat
from .safety.update_guard import UpdateGuard
from .trainer import FoundryTrainer

SECONDS_FOR_A_DYING_RANK = 5.0


@contextmanager
def watched(trainer: FoundryTrainer, output_dir: Path) -> Iterator[Heartbeat]:
    """What runs inside is ended cleanly by a signal, by a refused update, or by the loss of another rank.

    Raises:
        RunStoppedError: on every rank that is left; its line is printed and ``stopped.json`` written.
    """
    guard, arguments = trainer.guard, trainer.args
    seconds = guard.keys.stall_timeout_seconds
    # The signals outermost: a launcher that misses a rank sends SIGTERM at once to those that are to say why.
    with signals_noted(guard), signs_of_life(output_dir, arguments, seconds) as heartbeat:
        guard.mark = heartbeat.mark
        trainer.add_callback(HeartbeatMarks(heartbeat))
        try:
            yield heartbeat
            leave_at_exit()
        except RunStoppedError as end:
            end_together(end, output_dir, trainer.is_world_process_zero())
            raise
        except SaveFailedError as error:
            # On one rank: said here, or the others would name it in their own words.
            say(output_dir, error, trainer.state.global_step)
            raise
        except (RuntimeError, OSError) as error:
            # Whatever it says: with a rank gone already, CUDA and the data loader fail in words of their own.
            lost = heartbeat.await_loss(SECONDS_FOR_A_DYING_RANK if _speaks_of_a_peer(error) else 0)
            if lost is None:
                raise
            raise heartbeat.rank_lost(lost) from error


@contextmanager
def start_watched(arguments: Any) -> Iterator[None]:
    """What comes before the first step, under the same watch: a rank that dies or hangs there ends the others too."""
    with signs_of_life(Path(arguments.output_dir), arguments, arguments.stall_timeout_seconds):
        yield


@contextmanager
def signs_of_life(output_dir: Path, arguments: Any, timeout_seconds: float) -> Iterator[Heartbeat]:
    """This rank's heartbeat; its last sign says why the rank left."""
    rank = arguments.process_index
    start = clear_signs(output_dir, rank)
    heartbeat = Heartbeat(output_dir, rank, arguments.world_size, timeout_seconds, start)
    heartbeat.start()
    why = FINISHED
    try:
        yield heartbeat
    except RankLostError:
        why = LOST
        raise
    except BaseException as error:
        why = f"{type(error).__name__}: {masked(' '.join(str(error).split()))[:400]}"
        raise
    finally:
        heartbeat.end(why)


def clear_signs(output_dir: Path, rank: int) -> int:
    """Remove what an earlier start left, before any rank looks; returns a number for this start, of rank 0."""
    if rank == 0:
        (output_dir / STOPPED_NAME).unlink(missing_ok=True)
        for old in (output_dir / FOLDER_NAME).glob("rank-*"):
            old.unlink(missing_ok=True)
    start = [time.time_ns()]
    broadcast_object_list(start)  # and nobody goes on before rank 0 has cleared
    return start[0]


def refuse_to_finish(trainer: FoundryTrainer, output_dir: Path) -> None:
    """Raise PreemptedError where a signal ended training early: Trainer itself returns as if all was done."""
    if trainer.guard.all_signalled:
        overwrites = getattr(trainer.args, "overwrite", False)
        raise preempted(output_dir, trainer.state.global_step, overwrites)


def preempted(output_dir: Path, step: int, overwrites: bool = False) -> PreemptedError:
    way_on = "run the same command again to go on" + (", but without overwrite" if overwrites else "")
    return PreemptedError(
        f"{output_dir}: a signal ended the run after step {step}; checkpoint-{step} is saved, {way_on}",
        step,
    )


def end_together(end: RunStoppedError, output_dir: Path, is_main: bool) -> None:
    """Rank 0 says why; then all may go.  A launcher kills the others as soon as one has ended."""
    if is_main:
        say(output_dir, end)
    end.is_said = True
    leave_at_exit()
    wait_for_all_ranks()


@contextmanager
def signals_noted(guard: UpdateGuard) -> Iterator[None]:
    """SIGTERM and SIGUSR2 only leave a note here; the next step's vote tells all ranks."""
    process = os.getpid()

    def note(number: int, frame: FrameType | None) -> Any:
        if os.getpid() == process:
            guard.is_signalled = True
            return
        signal.signal(number, signal.SIG_DFL)  # a forked process inherits this handler
        os.kill(os.getpid(), number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _speaks_of_a_peer(error: Exception) -> bool:
    """Whether a collective failed (gloo raises plain RuntimeErrors), not this rank's own work."""
    return isinstance(error, torch.distributed.DistError) or "onnection" in str(error) or "gloo" in str(error)


class HeartbeatMarks(TrainerCallback):
    """Tells the heartbeat where the main thread is."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self.heartbeat = heartbeat

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.heartbeat.mark(state.global_step, "inside the forward pass of the next step")

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.heartbeat.mark(state.global_step, "inside the forward pass of the next step")

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.heartbeat.mark(state.global_step, "at the next update")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        saves = "evaluating or saving" if control.should_save or control.should_evaluate else "reading data"
        self.heartbeat.mark(state.global_step, saves)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.heartbeat.mark(state.global_step, "evaluating")

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.heartbeat.mark(state.global_step, "after saving")
