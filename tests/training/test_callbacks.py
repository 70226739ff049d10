"""The run log says what happened, in numbers, and stops at the first non-finite one."""

import json
import math
import time

import pytest

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.callbacks import RunLog, StepClock, _drop_lines_after, _summary


class State:
    is_world_process_zero = True
    num_input_tokens_seen = 0
    max_steps = 10

    def __init__(self, step=0):
        self.global_step = step


class Control:
    should_evaluate = False
    should_save = False


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rates_count_training_time_only(tmp_path):
    log, state, control = RunLog(tmp_path, tokens_per_step=1000), State(), Control()
    log.on_train_begin(None, state, control)
    log.on_step_begin(None, state, control)
    time.sleep(0.05)
    state.global_step = 2
    control.should_evaluate = True
    log.on_step_end(None, state, control)
    time.sleep(0.2)  # an evaluation: not training
    log.on_log(None, state, control, logs={"loss": "3.5", "learning_rate": 1e-3, "grad_norm": 0.5})
    line = lines(log.path)[0]
    assert line["loss"] == 3.5
    assert line["tokens"] == 2000
    assert 0.05 <= line["training_seconds"] < 0.15
    assert line["tokens_per_second"] == pytest.approx(2000 / line["training_seconds"], rel=0.02)
    assert line["step_seconds"] == pytest.approx(line["training_seconds"] / 2, rel=0.02)


def test_the_clock_pauses_and_goes_on():
    clock = StepClock()
    clock.start()
    clock.start()
    time.sleep(0.02)
    clock.pause()
    first = clock.read()
    time.sleep(0.05)
    assert clock.read() == first
    clock.start()
    time.sleep(0.02)
    assert first + 0.02 <= clock.read() < first + 0.05


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, "nan"])
def test_a_non_finite_number_stops_the_run(tmp_path, name, value):
    log = RunLog(tmp_path, 1)
    log.on_train_begin(None, State(), Control())
    with pytest.raises(FoundryError, match=f"step 3: {name} is"):
        log.on_log(None, State(3), Control(), logs={name: value})


def test_a_resumed_run_repeats_no_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 10}\n{"step": 20}\n{"step": 30}\n{"step": 3')
    _drop_lines_after(path, 20)
    assert lines(path) == [{"step": 10}, {"step": 20}]
    _drop_lines_after(tmp_path / "absent", 0)


def test_the_progress_line_names_what_it_shows():
    shown = _summary({"loss": 2.5, "learning_rate": 0.001, "tokens_per_second": 7123.4, "step": 3})
    assert shown == "loss 2.500, lr 1.0e-03, tok/s 7,123"
