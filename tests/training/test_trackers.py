"""Which tracker is on is said; what the log measures arrives there; nothing leaves the machine."""

import importlib.util
import json
import os
import sqlite3
import sys

import pytest

from modeling_foundry.alignment.pipeline import DPOArguments, SFTArguments
from modeling_foundry.pretraining.pipeline import PretrainArguments
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.log import trackers
from modeling_foundry.training.log.log_file import read_log
from modeling_foundry.training.plan import plan_of
from tests import warm_start
from tests.conftest import REPOSITORY, SOURCE_TEXT

CANARY = "canary0123456789abcdefghijklmnop"
MEASURED = {
    "tokens_per_second",
    "step_seconds",
    "data_wait_seconds",
    "clipped_share",
    "grad_max_abs",
    "tokens",
}


def installed(name):
    return importlib.util.find_spec(name) is not None


@pytest.fixture
def only(monkeypatch):
    """Pretend that exactly these trackers are installed."""

    def pretend(*names):
        monkeypatch.setattr(trackers, "_is_installed", lambda name: name in names)

    return pretend


def test_auto_is_trackio_where_it_is_installed(only):
    only("trackio")
    assert trackers.choose_trackers("auto") == ["trackio"]
    only()
    assert trackers.choose_trackers("auto") == "none"
    assert trackers.choose_trackers("none") == trackers.choose_trackers([]) == "none"


def test_a_tracker_asked_for_and_missing_is_an_error(only):
    only()
    with pytest.raises(FoundryError, match="report_to: wandb is not installed; pip install wandb"):
        trackers.choose_trackers(["wandb"])
    with pytest.raises(FoundryError, match="'wandbb' is no tracker"):
        trackers.choose_trackers("wandbb")


def test_the_recipe_says_a_missing_tracker_in_one_line():
    missing = next((name for name in ("wandb", "tensorboard", "trackio") if not installed(name)), None)
    if missing is None:
        pytest.skip("every tracker is installed here")
    config = REPOSITORY / "recipes/quickstart/pretrain.yaml"
    command = [sys.executable, "recipes/pretrain.py", "--config", str(config), f"--report_to={missing}"]
    done = warm_start.run(command, cwd=REPOSITORY)
    assert done.returncode == 2
    assert f"report_to: {missing} is not installed" in done.stderr.splitlines()[-1]


def test_one_line_says_which_tracker_is_on(only, monkeypatch, tmp_path):
    only()
    arguments = plan_of(PretrainArguments(str(tmp_path / "tiny" / "pretrain"), use_cpu=True)).arguments
    trackers.keep_trackers_local(arguments)
    assert "none (trackio is not installed)" in trackers.tracker_line(arguments)
    only("trackio", "wandb", "tensorboard")
    monkeypatch.setattr(os, "environ", {})  # what is set there does not reach the other tests
    arguments.report_to = ["trackio", "wandb", "tensorboard"]
    trackers.keep_trackers_local(arguments)
    line = trackers.tracker_line(arguments)
    assert "\n" not in line
    assert "trackio, project modeling-foundry, run tiny-pretrain, on this machine only" in line
    assert "wandb, project modeling-foundry, run tiny-pretrain, offline" in line
    assert f"tensorboard, {arguments.output_dir}/tensorboard" in line
    os.environ["TRACKIO_SPACE_ID"] = "someone/space"
    assert "sent to someone/space" in trackers.tracker_line(arguments)


def test_trackers_copy_no_credential(tmp_path, monkeypatch):
    """Settings and command line go into the run folder with wandb and tensorboard."""
    given = {
        "hub_token": f"hf_{CANARY}",
        "trackio_space_id": f"https://me:{CANARY}@host.example/a?key={CANARY}",
    }
    for kind in (PretrainArguments, SFTArguments, DPOArguments):
        arguments = kind(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **given)
        for copied in (arguments.to_dict(), arguments.to_sanitized_dict(), arguments.to_json_string()):
            assert CANARY not in str(copied)
    words = [
        "--hub_token",
        f"hf_{CANARY}",
        f"--trackio_space_id={given['trackio_space_id']}",
        "--max_steps=4",
    ]
    monkeypatch.setattr(sys, "argv", ["pretrain.py", *words])
    trackers.keep_trackers_local(arguments)
    assert CANARY not in str(sys.argv)
    assert sys.argv[-1] == "--max_steps=4"
    assert arguments.hub_token == f"hf_{CANARY}", "what works with it still has it"


def test_trackers_are_told_after_the_log():
    """Stand-ins in the places of transformers' own callbacks: the order is what is tested."""
    from transformers import Trainer, TrainerCallback
    from transformers.integrations import INTEGRATION_TO_CALLBACK

    reporter = type("Reporter", (TrainerCallback,), {})
    before = INTEGRATION_TO_CALLBACK["trackio"]
    INTEGRATION_TO_CALLBACK["trackio"] = reporter
    try:
        import torch

        arguments = PretrainArguments(use_cpu=True, report_to="none")
        trainer = Trainer(torch.nn.Linear(2, 2), arguments, callbacks=[reporter()])
        arguments.report_to = ["trackio"]
        log = type("Log", (TrainerCallback,), {})()
        trackers.add_before_trackers(trainer, log)
        order = [type(callback).__name__ for callback in trainer.callback_handler.callbacks]
        assert order.index("Log") < order.index("Reporter")
        assert order.count("Reporter") == 1
    finally:
        INTEGRATION_TO_CALLBACK["trackio"] = before


@pytest.fixture
def tiny_run(tmp_path, launch, monkeypatch):
    """Four steps with one tracker; returns the run folder."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    text = tmp_path / "input.txt"
    text.write_text(SOURCE_TEXT)

    def run(tracker):
        launch(
            "pretrain", "--config", str(REPOSITORY / "recipes/shakespeare/pretrain.yaml"),
            f"--text_file={text}", f"--output_dir={tmp_path}/tiny/pretrain", f"--report_to={tracker}",
            "--max_steps=4", "--warmup_steps=1", "--logging_steps=2", "--eval_steps=4", "--save_steps=4",
            "--hidden_size=32", "--intermediate_size=64", "--num_hidden_layers=2", "--num_attention_heads=2",
            "--num_key_value_heads=1", "--head_dim=16", "--sequence_length=32", "--text_file_vocab_size=320",
            "--per_device_train_batch_size=4", "--max_eval_sequences=8",
        )  # fmt: skip
        return tmp_path / "tiny" / "pretrain"

    return run


@pytest.mark.slow
@pytest.mark.skipif(not installed("trackio"), reason="trackio is not installed")
def test_trackio_gets_what_the_log_has(tiny_run, tmp_path):
    run = tiny_run("auto")
    (database,) = (path for path in (tmp_path / "trackio").glob("*.db"))
    with sqlite3.connect(database) as connection:
        rows = [json.loads(row[0]) for row in connection.execute("select metrics from metrics")]
    sent = {row["train/global_step"]: row for row in rows if "train/loss" in row}
    written = {line["step"]: line for line in read_log(run) if line["event"] == "train"}
    assert sent.keys() == written.keys() == {2, 4}
    for step, line in written.items():
        assert {f"train/{name}" for name in MEASURED} <= sent[step].keys()
        assert sent[step]["train/tokens_per_second"] == pytest.approx(line["tokens_per_second"])
    assert any("eval/loss" in row for row in rows)


@pytest.mark.slow
@pytest.mark.skipif(not installed("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_gets_what_the_log_has(tiny_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tiny_run("tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {f"train/{name}" for name in MEASURED} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/tokens_per_second")] == [2, 4]


@pytest.mark.slow
@pytest.mark.skipif(not installed("wandb"), reason="wandb is not installed")
def test_wandb_stays_offline(tiny_run):
    run = tiny_run("wandb")
    (folder,) = (run / "wandb").glob("offline-run-*")
    assert list(folder.glob("*.wandb"))
