"""Signals, dead, stopped and stuck ranks: all ranks end, with one line that says why."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeling_foundry.training import watch
from modeling_foundry.training.checkpoints.checkpoints import fault
from modeling_foundry.training.processes import endings as run_end
from modeling_foundry.training.processes.endings import RankLostError
from modeling_foundry.training.safety import heartbeat as heartbeat_module
from modeling_foundry.training.safety.heartbeat import Beat, Heartbeat, beat_path, read_beat
from tests import warm_start
from tests.conftest import REPOSITORY, SOURCE_TEXT
from tests.training.conftest import launch_command, launch_environment
from tests.training.test_update_guard import FAULTY, SIZES
from tests.waits import process_lives, wait_for

SLOW = {"kind": "slow", "seconds": 0.2}
SECONDS_OF_A_START: list[float] = []  # from a command to its first steps, in the tests that were


@pytest.fixture
def started(tmp_path):
    """Start the recipe with a fault on two ranks; the process is killed when the test ends."""
    children = []

    def start(fault, *more, engine="ddp"):
        text = tmp_path / "input.txt"
        text.write_text(SOURCE_TEXT)
        settings = [
            "--config", str(REPOSITORY / "recipes/shakespeare/pretrain.yaml"), f"--text_file={text}",
            f"--output_dir={tmp_path}/run", "--per_device_train_batch_size=2", "--eval_strategy=no",
            "--logging_steps=1", "--optimizer=adamw", "--max_steps=500", "--save_steps=200",
            "--dataloader_num_workers=2", *SIZES, *more,  # with workers, as every recipe for GPUs
        ]  # fmt: skip
        with open(tmp_path / "stderr", "w") as errors:
            child = warm_start.Popen(
                launch_command(FAULTY, *settings, ranks=2, engine=engine), cwd=REPOSITORY, stderr=errors,
                stdout=subprocess.DEVNULL, env=launch_environment(FAULT=json.dumps(fault)),
            )  # fmt: skip
        child.began = time.monotonic()
        children.append(child)
        return child, tmp_path / "run"

    yield start
    for child in children:
        if child.poll() is None:
            child.kill()
        child.wait()


def rank_at(run, rank, step, child):
    """The sign of a rank that has taken ``step`` steps."""

    def reached():
        beat = read_beat(run, rank)
        return beat if beat is not None and beat.step >= step else None

    beat = wait_for(reached, child)
    SECONDS_OF_A_START.append(time.monotonic() - child.began)
    return beat


def stall_seconds():
    """A bound that no start and no step goes over on a machine as busy as this one."""
    return max(15, round(3 * max(SECONDS_OF_A_START, default=30)))


def lines_said(tmp_path):
    return [line for line in (tmp_path / "stderr").read_text().splitlines() if "error: " in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "whom", "engine"),
    [
        (signal.SIGTERM, "rank", "ddp"),
        (signal.SIGUSR2, "rank", "ddp"),
        (signal.SIGTERM, "launcher", "ddp"),
        (signal.SIGUSR2, "launcher", "ddp"),  # it passes neither of these on
        (signal.SIGKILL, "launcher", "ddp"),
        (signal.SIGTERM, "every process", "ddp"),  # as scancel does
        (signal.SIGTERM, "rank", "zero1"),
    ],
)
def test_a_signal_to_one_rank_saves_the_same_step_on_all(number, whom, engine, started, tmp_path):
    child, run = started(SLOW, engine=engine)
    beat = rank_at(run, 1, 2, child)
    told = {
        "rank": [beat.pid],
        "launcher": [child.pid],
        "every process": [child.pid, *descendants(child.pid)],
    }
    for pid in told[whom]:
        os.kill(pid, number)
    child.wait()
    assert child.returncode != 0
    pids = [read_beat(run, rank).pid for rank in (0, 1)]
    wait_for(lambda: not any(map(process_lives, pids)))
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["exit_code"] == 75
    assert "run the same command again" in stopped["reason"]
    (checkpoint,) = run.glob("checkpoint-*")
    assert checkpoint.name == f"checkpoint-{stopped['step']}"
    assert fault(checkpoint) is None
    taken = [len((run / f"states-rank-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
    assert taken == [stopped["step"]] * 2
    assert not (run / "complete.json").exists()
    assert not (run / "model").exists()
    assert len(lines_said(tmp_path)) == 1
    if whom == "rank":
        assert "exitcode: 75" in (tmp_path / "stderr").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_other_with_words(rank, started, tmp_path):
    child, run = started(SLOW)
    beat = rank_at(run, rank, 2, child)
    os.kill(beat.pid, signal.SIGKILL)
    wait_for((run / "stopped.json").exists)
    child.wait()
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["exit_code"] == 69
    assert (
        f"rank {rank} ({beat.host}, pid {beat.pid}) died; its last sign was after step " in stopped["reason"]
    )
    (line,) = lines_said(tmp_path)
    assert stopped["reason"] in line
    assert "Traceback" not in (tmp_path / "stderr").read_text().split("error: ")[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "stuck"])
def test_a_hung_rank_ends_the_other_within_the_bound(how, started, tmp_path):
    hang, bound = {"kind": "hang", "rank": 1, "step": 4}, stall_seconds()
    child, run = started(SLOW if how == "stopped" else hang, f"--stall_timeout_seconds={bound}")
    beat = rank_at(run, 1, 3, child)
    if how == "stopped":
        os.kill(beat.pid, signal.SIGSTOP)
    since = time.monotonic()
    wait_for((run / "stopped.json").exists)
    assert time.monotonic() - since > 5
    survivor = read_beat(run, 0)
    wait_for(lambda: not process_lives(survivor.pid))
    os.kill(beat.pid, signal.SIGKILL)  # the launcher would do so after 30 seconds
    child.wait()
    stopped = json.loads((run / "stopped.json").read_text())
    assert stopped["exit_code"] == 69
    said = "gave no sign for" if how == "stopped" else "is stuck, the others waited"
    assert f"rank 1 ({beat.host}, pid {beat.pid}) {said}" in stopped["reason"]
    assert f"(stall_timeout_seconds {bound})" in stopped["reason"]
    assert len(lines_said(tmp_path)) == 1


def descendants(pid):
    """Every process under another: ranks, and the workers of their data loaders."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for child in children for each in (int(child), *descendants(int(child)))]


# ------------------------------------------------------------------ signs of life


def leave_sign(folder, **facts):
    path = beat_path(folder, facts["rank"])
    path.parent.mkdir(parents=True, exist_ok=True)
    beat = Beat(**{"start": 0, "host": "elsewhere", "pid": 1, **facts})
    path.write_text(json.dumps(vars(beat)))


def test_a_rank_that_left_is_lost_and_says_why(tmp_path):
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=3, timeout_seconds=60)
    leave_sign(tmp_path, rank=1)
    assert heartbeat.lost() is None, "on another machine, and its file is there"
    leave_sign(tmp_path, rank=2, step=7, ended="OutOfMemoryError: CUDA out of memory")
    assert heartbeat.lost() == "rank 2 (elsewhere, pid 1) ended: OutOfMemoryError: CUDA out of memory"


def test_a_rank_that_finished_first_is_not_lost(tmp_path):
    """Rank 0 alone seals the last checkpoint."""
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=2, timeout_seconds=60)
    leave_sign(tmp_path, rank=1, host=heartbeat.mine.host, pid=2**22 + 1, ended="finished")
    assert heartbeat.lost() is None


def test_the_signs_of_an_earlier_start_are_not_read(tmp_path):
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=2, timeout_seconds=60, start=2)
    leave_sign(tmp_path, rank=1, start=1, ended="out of memory")
    assert heartbeat.lost() is None
    leave_sign(tmp_path, rank=1, start=2, ended="out of memory")
    assert heartbeat.lost() is not None


def test_a_process_that_was_suspended_goes_on(tmp_path, monkeypatch):
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=1, timeout_seconds=2)
    ended = []
    monkeypatch.setattr(heartbeat, "_end_process", ended.append)
    waits = iter([False, True])

    def wait(seconds):  # the thread comes back long after it should
        heartbeat._marked_at -= 100
        clock[0] += 100
        return next(waits)

    clock = [1000.0]
    monkeypatch.setattr("modeling_foundry.training.safety.heartbeat.time.monotonic", lambda: clock[0])
    heartbeat._marked_at = clock[0]
    monkeypatch.setattr(heartbeat._stop, "wait", wait)
    heartbeat._watch()
    assert ended == []


def test_a_dead_process_of_this_machine_is_lost(tmp_path):
    child = subprocess.Popen(["true"])
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=2, timeout_seconds=60)
    host = heartbeat.mine.host
    leave_sign(tmp_path, rank=1, host=host, pid=os.getpid(), step=3, doing="reading data")
    assert heartbeat.lost() is None
    leave_sign(tmp_path, rank=1, host=host, pid=child.pid, step=3, doing="reading data")
    wait_for(lambda: not process_lives(child.pid))
    lost = heartbeat.await_loss(10)  # a zombie until somebody waits for it
    assert lost == f"rank 1 ({host}, pid {child.pid}) died; its last sign was after step 3, reading data"
    child.wait()
    assert heartbeat.lost() == lost


def test_the_rank_behind_is_the_one_the_others_wait_for(tmp_path):
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=3, timeout_seconds=60)
    for step in range(5):
        heartbeat.mark(step, "at the next update")
    leave_sign(tmp_path, rank=1, step=4, num_marks=5)
    leave_sign(tmp_path, rank=2, step=3, num_marks=4, doing="reading data")
    said = heartbeat._stalled(61.0)
    assert said.startswith("rank 2 (elsewhere, pid 1) is stuck, the others waited 61 s for it")
    assert "after step 3, reading data" in said
    leave_sign(tmp_path, rank=2, step=4, num_marks=5)
    nobody = "no rank made progress for 61 s (stall_timeout_seconds 60), none is behind: after step 4, rank 0"
    assert nobody in heartbeat._stalled(61.0)
    leave_sign(tmp_path, rank=2, step=4, num_marks=6)
    assert heartbeat._stalled(61.0).startswith(f"{heartbeat.mine.words()} is stuck since 61 s")


def test_where_each_rank_is_stands_beside_a_stall_that_none_is_behind_in(tmp_path):
    """A pass under DDP first waits for the buffers of rank 0: marks cannot tell who is stuck, functions can."""
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=2, timeout_seconds=60)
    heartbeat.mark(7, "evaluating")
    heartbeat.mine = replace(heartbeat.mine, inside="distributed.py:_sync_buffers")
    leave_sign(tmp_path, rank=1, step=7, num_marks=1, doing="evaluating", inside="packing.py:__getitem__")
    assert heartbeat._stalled(61.0).endswith(
        "none is behind: after step 7, rank 0 evaluating (in distributed.py:_sync_buffers), "
        "rank 1 evaluating (in packing.py:__getitem__)"
    )


def test_a_sign_of_life_says_where_the_main_thread_is(tmp_path):
    heartbeat = Heartbeat(tmp_path, rank=0, num_ranks=1, timeout_seconds=10_000)
    heartbeat.interval = 0.05
    heartbeat.start()
    wait_for(lambda: (beat := read_beat(tmp_path, 0)) and beat.num_beats > 1)
    heartbeat.end("test")
    assert re.fullmatch(r"\w+\.py:\w+", read_beat(tmp_path, 0).inside)


def test_the_lowest_rank_that_is_left_speaks(tmp_path):
    heartbeat = Heartbeat(tmp_path, rank=1, num_ranks=3, timeout_seconds=60)
    leave_sign(tmp_path, rank=2)
    assert heartbeat.is_speaker()
    leave_sign(tmp_path, rank=0)
    assert not heartbeat.is_speaker()
    leave_sign(tmp_path, rank=0, ended="killed")
    assert heartbeat.is_speaker()


def test_a_torn_sign_is_no_sign(tmp_path):
    path = beat_path(tmp_path, 0)
    path.parent.mkdir()
    for content in ("", "{", "[]", '{"rank": 0}'):
        path.write_text(content)
        assert read_beat(tmp_path, 0) is None


# ------------------------------------------------------------------ who says it, and how often


@pytest.fixture
def bereft(tmp_path, monkeypatch):
    """Train under watch as rank 0 of two whose rank 1 is dead; ``happens`` comes while its collective fails."""
    child = subprocess.Popen(["true"])
    child.wait()
    monkeypatch.setattr(watch, "clear_signs", lambda output_dir, rank: 0)

    def train(happens=lambda: None, message="gloo: Connection closed by peer"):
        def fails(**kwargs):
            leave_sign(
                tmp_path, rank=1, host=socket.gethostname(), pid=child.pid, step=3, doing="reading data"
            )
            happens()
            raise RuntimeError(message)

        trainer = SimpleNamespace(
            guard=SimpleNamespace(keys=SimpleNamespace(stall_timeout_seconds=900.0), is_signalled=False),
            args=SimpleNamespace(process_index=0, world_size=2), state=SimpleNamespace(global_step=4),
            add_callback=lambda callback: None, train=fails, is_world_process_zero=lambda: True,
        )  # fmt: skip
        with watch.watched(trainer, tmp_path):
            trainer.train()

    return train


def test_the_launchers_signal_does_not_silence_the_rank_that_is_left(bereft, tmp_path, monkeypatch):
    """A launcher that misses a rank sends SIGTERM to the others at once; the one that knows why must still say so."""
    unprotected, say = [], heartbeat_module.say

    def signalled_say(output_dir, end):
        os.kill(os.getpid(), signal.SIGTERM)
        say(output_dir, end)

    monkeypatch.setattr(heartbeat_module, "say", signalled_say)
    before = signal.signal(signal.SIGTERM, lambda number, frame: unprotected.append(number))
    try:
        with pytest.raises(RankLostError, match="rank 1 .* died"):
            bereft()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert unprotected == []
    assert "rank 1" in json.loads((tmp_path / "stopped.json").read_text())["reason"]


def test_a_lost_rank_is_said_once_whichever_thread_saw_it(bereft, tmp_path, monkeypatch, capsys):
    """The exception comes while the watching thread, too, has seen that the rank is gone."""
    sound = Heartbeat.await_loss
    monkeypatch.setattr(heartbeat_module.os, "_exit", lambda code: None)
    monkeypatch.setattr(heartbeat_module, "MOST_SECONDS_BETWEEN_BEATS", 0.02)
    monkeypatch.setattr(heartbeat_module, "SECONDS_FOR_THE_EXCEPTION", 0.0)

    def slowly(self, seconds):
        time.sleep(0.5)
        return sound(self, seconds)

    monkeypatch.setattr(Heartbeat, "await_loss", slowly)
    with pytest.raises(RankLostError):
        bereft()
    assert capsys.readouterr().err.count("error: ") == 1


def test_rank_1_speaks_when_rank_0_was_killed(tmp_path):
    """Its last sign is fresh, but its process is gone."""
    child = subprocess.Popen(["true"])
    child.wait()
    heartbeat = Heartbeat(tmp_path, rank=1, num_ranks=2, timeout_seconds=900)
    leave_sign(tmp_path, rank=0, host=heartbeat.mine.host, pid=os.getpid())
    assert not heartbeat.is_speaker()
    leave_sign(tmp_path, rank=0, host=heartbeat.mine.host, pid=child.pid)
    assert heartbeat.is_speaker()


def test_a_rank_that_left_because_of_another_is_not_the_one_named(bereft, tmp_path):
    with pytest.raises(RankLostError):
        bereft()
    left = read_beat(tmp_path, 0)
    assert left.ended == heartbeat_module.LOST
    third = Heartbeat(tmp_path, rank=2, num_ranks=3, timeout_seconds=900)
    assert third.lost().startswith("rank 1 "), "not rank 0, which ended because of rank 1"


def test_a_rank_that_was_interrupted_did_not_finish(tmp_path, bereft):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bereft(interrupted)
    assert read_beat(tmp_path, 0).ended.startswith("KeyboardInterrupt")


def test_a_full_disk_does_not_keep_a_run_from_ending(bereft, tmp_path, monkeypatch, capsys):
    def full_disk(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_end, "write_atomically", full_disk)
    with pytest.raises(RankLostError) as lost:
        bereft()
    assert lost.value.is_said
    (line,) = capsys.readouterr().err.splitlines()
    assert "rank 1 " in line
    assert f"{tmp_path}/stopped.json could not be written: No space left on device" in line
