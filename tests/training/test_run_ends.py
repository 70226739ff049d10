"""Signals, full disks and deaths at awkward moments: what a run leaves, and what its next start does with it."""

import errno
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback

from modeling_foundry.pretraining import pipeline as pretraining
from modeling_foundry.run_record import masked
from modeling_foundry.settings import FoundryError
from modeling_foundry.training import session
from modeling_foundry.training.checkpoints import (
    checkpoints,
    optimizer_state,
)
from modeling_foundry.training.checkpoints import (
    parts as checkpoint_parts,
)
from modeling_foundry.training.checkpoints.checkpoints import (
    fault,
    newest_whole_checkpoint,
    sealed_checkpoints,
)
from modeling_foundry.training.log.log_file import read_log
from modeling_foundry.training.processes.endings import (
    PreemptedError,
    SaveFailedError,
    UpdateRefusedError,
)
from modeling_foundry.training.safety import heartbeat
from modeling_foundry.training.safety.heartbeat import Heartbeat
from modeling_foundry.training.trainer import FoundryTrainer
from tests.training.small_run import STEPS, train

SECRET = "hf_canary0123456789abcdefghijklmnop"
EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run, small_data, **EVALUATED)
    return run


class SignalAt(TrainerCallback):
    """SIGTERM to this process at one event of one step."""

    def __init__(self, event, step):
        self.event, self.step = event, step

    def __getattribute__(self, name):
        if name.startswith("on_") and name == object.__getattribute__(self, "event"):
            return self.send
        return object.__getattribute__(self, name)

    def send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGUSR2)


@pytest.fixture
def signal_at(monkeypatch):
    sound = FoundryTrainer.guard_updates

    def send(event, step):
        def guard_updates(self, guard):
            sound(self, guard)
            self.add_callback(SignalAt(event, step))

        monkeypatch.setattr(FoundryTrainer, "guard_updates", guard_updates)

    yield send
    monkeypatch.setattr(FoundryTrainer, "guard_updates", sound)


def figures(run):
    """Losses, held-out losses and what stands beside them; one put off stands after its checkpoint's line."""
    lines = [line for line in read_log(run) if line["event"] in ("train", "evaluation")]
    names = ("step", "loss", "eval_loss", "train_loss", "learning_rate")
    return [tuple(line.get(name) for name in names) for line in lines]


def same_weights(ours, theirs):
    ours, theirs = (load_file(run / "model/model.safetensors") for run in (ours, theirs))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [
        ("on_train_begin", 0, 1),
        ("on_step_begin", 1, 2),  # an evaluation is due after step 2: the next start makes it
        ("on_prediction_step", 2, 3),
        ("on_save", 2, 3),
        ("on_step_begin", 5, 6),  # the last step, whose evaluation is due too
    ],
)
def test_a_signal_at_any_moment_costs_no_bit(
    event, step, saved, small_data, whole, tmp_path, signal_at, monkeypatch
):
    run = tmp_path / "run"
    signal_at(event, step)
    with pytest.raises(PreemptedError, match=f"checkpoint-{saved} is saved"):
        train(run, small_data, **EVALUATED)
    assert fault(run / f"checkpoint-{saved}") is None
    assert not (run / "model").exists()
    assert not (run / "complete.json").exists()
    monkeypatch.undo()
    train(run, small_data, **EVALUATED)
    assert figures(run) == figures(whole)
    assert same_weights(run, whole)


def test_who_overwrites_is_told_how_to_go_on(small_data, tmp_path, signal_at):
    signal_at("on_step_begin", 1)
    with pytest.raises(PreemptedError, match="run the same command again to go on, but without overwrite"):
        train(tmp_path, small_data, overwrite=True)


def test_a_signal_while_the_final_model_is_written_lets_it_be_finished(small_data, tmp_path, monkeypatch):
    write_final = session.TrainingSession._write_final

    def with_signal(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        write_final(self, *args, **kwargs)

    monkeypatch.setattr(session.TrainingSession, "_write_final", with_signal)
    train(tmp_path, small_data)
    assert (tmp_path / "complete.json").is_file()


def test_a_final_model_is_whole_or_not_there(small_data, tmp_path, monkeypatch):
    save_model = Trainer.save_model

    def dies(self, output_dir=None, _internal_call=False):
        save_model(self, output_dir, _internal_call)
        if not _internal_call:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save_model", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, small_data)
    assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    folder = train(tmp_path, small_data)
    last = load_file(tmp_path / f"checkpoint-{STEPS}" / "model.safetensors")
    final = load_file(folder / "model.safetensors")
    assert final.keys() == last.keys()
    assert all(torch.equal(final[name], last[name]) for name in last)
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".model")]


@pytest.mark.parametrize(
    "place",
    [(optimizer_state, "save_file"), (checkpoints, "sha256_of_file"), (checkpoints, "write_atomically")],
)
def test_a_full_disk_is_one_line_and_the_last_checkpoint_stays(
    place, small_data, tmp_path, monkeypatch, capsys
):
    """With one checkpoint kept; and the signs of life, on the same disk, hide nothing."""
    module, name = place
    sound, write_text = getattr(module, name), heartbeat.Path.write_text

    def full(*args, **kwargs):
        if sealed_checkpoints(tmp_path):
            monkeypatch.setattr(heartbeat.Path, "write_text", full_disk)
            full_disk()
        return sound(*args, **kwargs)

    def full_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, name, full)
    with pytest.raises(SaveFailedError, match="No space left on device.*torn-checkpoint") as refused:
        train(tmp_path, small_data, keep_checkpoints=1)
    assert refused.value.exit_code == 74
    assert "\n" not in str(refused.value)
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert (stopped["exit_code"], stopped["step"]) == (74, 4)
    assert capsys.readouterr().err.count("error: ") == 1
    assert refused.value.is_said
    assert [path.name for path in sealed_checkpoints(tmp_path)] == ["checkpoint-2"]
    monkeypatch.undo()
    assert heartbeat.Path.write_text is write_text
    train(tmp_path, small_data, keep_checkpoints=1)
    assert {path.name for path in tmp_path.glob("*checkpoint-*")} == {
        f"checkpoint-{STEPS}",
        "torn-checkpoint-4",
    }


def dies(*args, **kwargs):
    raise KeyboardInterrupt


def test_a_checkpoint_removed_by_half_is_no_damage_and_goes(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
    facts = {"version": 2, "world_size": 1}
    for step in (1, 2):
        checkpoints.write_seal(tmp_path / f"checkpoint-{step}", {**facts, "global_step": step})
    monkeypatch.setattr(checkpoints.shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove_checkpoint(tmp_path / "checkpoint-1")
    monkeypatch.undo()
    assert sealed_checkpoints(tmp_path) == [tmp_path / "checkpoint-2"]
    state = SimpleNamespace(global_step=3, is_world_process_zero=True)
    arguments = SimpleNamespace(output_dir=str(tmp_path), world_size=1, load_best_model_at_end=False)
    checkpoints.DurableCheckpoints(keep=2).on_save(arguments, state, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-3"


def test_the_folder_of_a_checkpoint_is_on_the_disk_before_an_older_one_goes(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(checkpoints, "sync_folder", lambda folder: done.append(("sync", folder)))
    monkeypatch.setattr(checkpoints, "remove_checkpoint", lambda folder: done.append(("remove", folder)))
    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
        state = SimpleNamespace(global_step=step, is_world_process_zero=True)
        arguments = SimpleNamespace(output_dir=str(tmp_path), world_size=1, load_best_model_at_end=False)
        checkpoints.DurableCheckpoints(keep=1).on_save(arguments, state, None)
    assert done[-2:] == [("sync", tmp_path), ("remove", tmp_path / "checkpoint-1")]


def test_no_token_is_in_what_a_killed_save_or_a_failing_run_leaves(small_data, tmp_path, monkeypatch):
    """Trainer pickles its arguments, hub_token in clear, into each checkpoint; an exception may quote one."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    seen, save = [], torch.save

    def seen_save(what, path):
        save(what, path)
        seen.append(Path(path).read_bytes())

    monkeypatch.setattr(torch, "save", seen_save)

    def fails(part, folder):
        raise RuntimeError(f"401 for {SECRET}")

    monkeypatch.setattr(checkpoint_parts.Optimizer, "save", fails)
    with pytest.raises(RuntimeError, match="401"):
        train(tmp_path, small_data, hub_token=SECRET)
    assert seen, "Trainer wrote its arguments"
    assert all(SECRET.encode() not in content for content in seen)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / "checkpoint-2/model.safetensors" in files
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        assert path.suffix != ".bin"
    assert "401 for ***" in (tmp_path / "heartbeats/rank-0.json").read_text()


def test_only_credentials_are_masked(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "parallelism")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("SHORT_TOKEN", "step")
    assert masked(f"step 3, parallelism: {SECRET}") == "step 3, parallelism: ***"


def test_the_signs_of_life_go_on_when_they_cannot_be_written(tmp_path, caplog):
    (tmp_path / "heartbeats").touch()  # where the folder should be
    beat = Heartbeat(tmp_path, 0, 1, timeout_seconds=900)
    beat.start()
    beat.mark(1, "training")
    beat.end("finished")
    assert caplog.text.count("no sign of life could be written") == 1


def test_a_signal_beside_a_spike_ends_the_run_before_the_way_back(
    small_data, tmp_path, monkeypatch, signal_at
):
    sound = Trainer.compute_loss

    def spiked(self, *args, **kwargs):
        loss = sound(self, *args, **kwargs)
        return loss * 50 if self.state.global_step == 9 else loss

    monkeypatch.setattr(Trainer, "compute_loss", spiked)
    signal_at("on_step_begin", 9)
    rules = {"loss_spike": "rollback", "spike_window_steps": 8, "max_steps": 12, "save_steps": 4}
    with pytest.raises(PreemptedError, match="step 10 .*above"):
        train(tmp_path, small_data, **rules)
    assert json.loads((tmp_path / "stopped.json").read_text())["exit_code"] == 75
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-8"
    monkeypatch.undo()
    train(tmp_path, small_data, **rules)
    assert (tmp_path / "complete.json").is_file()


def test_watch_is_told_of_a_failing_end(tmp_path, small_data, monkeypatch):
    """Writing the final model is under watch too: what a rank died of there is left for the others."""

    def fails(self, *args, **kwargs):
        raise FoundryError("no final model")

    monkeypatch.setattr(session.TrainingSession, "_write_final", fails)
    with pytest.raises(FoundryError, match="no final model"):
        train(tmp_path, small_data)
    assert "no final model" in json.loads((tmp_path / "heartbeats/rank-0.json").read_text())["ended"]


def test_a_stuck_rank_can_be_told_from_those_that_wait_for_it(small_data, tmp_path, monkeypatch):
    """Each wait for the others comes after a mark, so that the rank without it is the one that is stuck."""
    seen = []
    monkeypatch.setattr(Heartbeat, "mark", lambda self, step, doing: seen.append((step, doing)))
    train(tmp_path, small_data, max_steps=2, **EVALUATED)
    order = [
        "evaluating, a batch of its own done", "saving, the model done", "saving, its own part done",
        "writing the final model", "writing the final model, its own part done",
    ]  # fmt: skip
    places = [seen.index((2, doing)) for doing in order]
    assert places == sorted(places)


def test_a_death_before_the_first_step_is_left_for_the_others(small_data, tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "before_first_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, small_data)
    assert "KeyboardInterrupt" in json.loads((tmp_path / "heartbeats/rank-0.json").read_text())["ended"]


def test_the_first_word_about_a_lost_rank_stays(tmp_path, monkeypatch):
    """Rank 0 has said that rank 2 hangs, and ended; rank 1, which ends too, does not say that rank 0 did."""
    exits = []
    monkeypatch.setattr(heartbeat.os, "_exit", exits.append)
    monkeypatch.setattr(heartbeat.time, "sleep", lambda seconds: None)
    beats = [Heartbeat(tmp_path, rank, 3, timeout_seconds=900, start=7) for rank in (0, 1)]
    for beat in beats:
        beat.start()
    try:
        beats[0]._end_process("rank 2 is stuck")
        first = (tmp_path / "stopped.json").read_text()
        beats[1]._end_process(beats[1].lost())
    finally:
        for beat in beats:
            beat.end("test")
    assert exits == [69, 69]
    assert "rank 2 is stuck" in first
    assert (tmp_path / "stopped.json").read_text() == first


@pytest.mark.parametrize("strategy", ["steps", "no"])
def test_a_weight_that_overflows_in_its_update_is_never_saved(strategy, small_data, tmp_path, capsys):
    """Loss and gradient of the step were finite, and after the last step no loss would tell."""
    with pytest.raises(UpdateRefusedError, match="step 1: model.* is not finite"):
        train(
            tmp_path / "run", small_data, max_steps=1, save_steps=1, save_strategy=strategy, learning_rate=1e39,
            lr_scheduler_type="constant", lr_scheduler_kwargs={},
        )  # fmt: skip
    assert not any((tmp_path / "run").glob("*/*.safetensors"))
    assert json.loads((tmp_path / "run/stopped.json").read_text())["exit_code"] == 65
