"""The run log says what happened, in numbers, counts training time only, and stops at a non-finite number."""

import io
import json
import math
from types import SimpleNamespace

import pytest
import torch
from tqdm.auto import tqdm
from transformers import TrainerControl
from transformers.trainer_utils import IntervalStrategy

from modeling_foundry import FoundryConfig, FoundryForCausalLM
from modeling_foundry.training.log.log_file import read_log
from modeling_foundry.training.log.progress import BAR, _facts, _fitting
from modeling_foundry.training.log.run_log import RunLog
from modeling_foundry.training.log.throughput import RunClock
from modeling_foundry.training.processes.endings import UpdateRefusedError


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def arguments(**changes):
    values = {
        "max_grad_norm": 1.0, "eval_on_start": False, "logging_steps": 1, "logging_first_step": False,
        "logging_strategy": IntervalStrategy.STEPS, "device": torch.device("cpu"), "world_size": 1,
        "bf16": False, "fp16": False, "distributed_state": None, "train_batch_size": 2,
        "gradient_accumulation_steps": 1, "non_finite": "stop",
    }  # fmt: skip
    return SimpleNamespace(**values | changes)


def state(step=0):
    return SimpleNamespace(
        global_step=step,
        is_world_process_zero=True,
        num_input_tokens_seen=0,
        max_steps=10,
        logging_steps=1,
    )


@pytest.fixture
def model():
    return FoundryForCausalLM(
        FoundryConfig(
            vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8,
        )
    )  # fmt: skip


def begun(tmp_path, model, step=0, now=None, **changes):
    log = RunLog(tmp_path, tokens_per_step=1000, clock=RunClock(now or Clock(), lambda: None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    log.on_train_begin(arguments(**changes), state(step), TrainerControl(), model=model, optimizer=optimizer)
    return log


def test_rates_leave_out_evaluation_and_checkpoints(tmp_path, model):
    now, control = Clock(), TrainerControl()
    log = begun(tmp_path, model, now=now)
    log.on_step_begin(arguments(), state(), control)
    now.seconds = 4.0
    control.should_evaluate = control.should_save = True
    log.on_step_end(arguments(), state(2), control)
    log.on_log(arguments(), state(2), control, logs={"loss": "3.5", "learning_rate": 1e-3, "grad_norm": 0.5})
    now.seconds = 14.0
    log.on_log(arguments(), state(2), control, logs={"eval_loss": 3.25})
    log.on_evaluate(arguments(), state(2), control)
    now.seconds = 17.0
    log.on_save(arguments(), state(2), control)
    log.on_step_begin(arguments(), state(2), control)
    now.seconds = 19.0
    log.on_log(arguments(), state(3), TrainerControl(), logs={"loss": 3.0, "learning_rate": 1e-3})
    _, first, evaluation, checkpoint, second = read_log(tmp_path)
    assert (first["event"], first["loss"], first["tokens"]) == ("train", 3.5, 2000)
    assert (first["training_seconds"], first["tokens_per_second"], first["step_seconds"]) == (4.0, 500.0, 2.0)
    assert (evaluation["event"], evaluation["eval_loss"], evaluation["train_loss"]) == (
        "evaluation",
        3.25,
        3.5,
    )
    assert evaluation["evaluation_seconds"] == 10.0
    assert (checkpoint["event"], checkpoint["path"], checkpoint["save_seconds"]) == (
        "checkpoint", "checkpoint-2", 3.0,
    )  # fmt: skip
    assert checkpoint["eval_loss"] == 3.25
    assert (second["tokens_per_second"], second["training_seconds"]) == (500.0, 6.0)
    assert (second["evaluation_seconds"], second["checkpoint_seconds"]) == (10.0, 3.0)


def test_the_evaluation_before_the_first_step_is_no_training(tmp_path, model):
    now = Clock()
    log = begun(tmp_path, model, now=now, eval_on_start=True)
    now.seconds = 7.0
    log.on_epoch_begin(arguments(), state(), TrainerControl())
    now.seconds = 9.0
    assert log.clock.totals() == {
        "training_seconds": 2.0,
        "evaluation_seconds": 7.0,
        "checkpoint_seconds": 0.0,
    }


def test_waiting_for_data_is_training_and_shown(tmp_path, model):
    now = Clock()
    log = begun(tmp_path, model, now=now)

    def batches():
        for _ in range(2):
            now.seconds += 0.5
            yield "batch"

    assert list(log.timed(batches())) == ["batch", "batch"]
    now.seconds += 3.0
    log.on_log(arguments(), state(2), TrainerControl(), logs={"loss": 1.0})
    line = read_log(tmp_path)[-1]
    assert (line["data_wait_seconds"], line["step_seconds"]) == (0.5, 2.0)


def test_the_first_line_says_what_the_run_is(tmp_path, model):
    begun(tmp_path, model)
    (line,) = read_log(tmp_path)
    assert (line["event"], line["step"]) == ("start", 0)
    count = sum(p.numel() for p in model.parameters())
    assert line["model"]["num_parameters"] == line["model"]["num_trainable_parameters"] == count
    assert line["model"]["num_non_embedding_parameters"] == count - 2 * 64 * 16
    assert line["optimizer"]["type"] == "AdamW"
    assert line["optimizer"]["param_groups"][0]["num_parameters"] == count
    assert line["hardware"]["num_ranks"] == 1
    assert line["batch"]["tokens_per_step"] == 1000


def test_later_callbacks_get_the_measured_fields(tmp_path, model):
    """Trackers are added after the log and read the same dictionary."""
    now = Clock()
    log = begun(tmp_path, model, now=now)
    log.on_step_begin(arguments(), state(), TrainerControl())
    now.seconds = 2.0
    log.norms.add(torch.tensor(0.5))
    logs = {"loss": 3.0, "grad_norm": 0.5}
    log.on_log(arguments(), state(1), TrainerControl(), logs=logs)
    assert {
        "tokens",
        "tokens_per_second",
        "step_seconds",
        "clipped_share",
        "host_memory_bytes",
    } <= logs.keys()
    assert all(isinstance(value, (int, float)) for value in logs.values())


def test_gradient_sizes_are_those_before_clipping(tmp_path, model):
    log = begun(tmp_path, model)
    ids = torch.arange(32).reshape(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    layers = [
        math.sqrt(sum(float(p.grad.square().sum()) for p in layer.parameters()))
        for layer in model.model.layers
    ]
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    log.norms = type(log.norms)(0.1)
    log.norms.add(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1))
    log.on_pre_optimizer_step(arguments(), state(), TrainerControl(), model=model)
    log.on_log(arguments(), state(1), TrainerControl(), logs={"loss": 3.0})
    line = read_log(tmp_path)[-1]
    assert line["clipped_share"] == 1.0
    assert line["clip_coefficient"] == pytest.approx(0.1 / line["grad_norm_mean"], rel=1e-4)
    assert line["grad_layer_norms"] == pytest.approx(layers, rel=1e-4)
    assert line["grad_layer_norm_max"] == pytest.approx(max(layers), rel=1e-4)
    assert line["grad_max_abs"] == pytest.approx(largest, rel=1e-4)


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_a_shard_of_a_gradient_is_not_taken_for_the_whole(tmp_path, model, engine):
    log = begun(tmp_path, model)
    ids = torch.arange(32).reshape(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    sharded = arguments(distributed_state=SimpleNamespace(distributed_type=f"DistributedType.{engine}"))
    log.on_pre_optimizer_step(sharded, state(), TrainerControl(), model=model)
    assert log.sizes.take() == {}


def test_sizes_are_read_on_logged_steps_only(tmp_path, model):
    log = begun(tmp_path, model)
    ids = torch.arange(32).reshape(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    seldom = arguments(logging_steps=5)
    for step in range(10):
        between = state(step)
        between.logging_steps = 5
        log.on_pre_optimizer_step(seldom, between, TrainerControl(), model=model)
        assert bool(log.sizes.take()) == (step + 1 in (5, 10))


def test_groups_of_different_learning_rates_are_told(tmp_path, model):
    log = begun(tmp_path, model)
    first, *rest = model.parameters()
    optimizer = torch.optim.AdamW([{"params": [first], "lr": 0.02}, {"params": rest, "lr": 0.01}])
    log.on_pre_optimizer_step(arguments(), state(), TrainerControl(), model=model, optimizer=optimizer)
    log.on_log(arguments(), state(1), TrainerControl(), logs={"loss": 3.0, "learning_rate": 0.02})
    assert read_log(tmp_path)[-1]["learning_rates"] == [0.02, 0.01]


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, "nan"])
def test_a_non_finite_number_stops_the_run(tmp_path, model, name, value):
    log = begun(tmp_path, model)
    with pytest.raises(UpdateRefusedError, match=f"step 3: {name} is"):
        log.on_log(arguments(), state(3), TrainerControl(), logs={name: value})
    written = json.loads(
        log.path.read_text().splitlines()[-1], parse_constant=lambda word: pytest.fail(f"{word} is no JSON")
    )
    assert written[name] is None


def test_a_held_out_loss_that_is_not_finite_is_passed_by_where_the_policy_says_so(tmp_path, model, caplog):
    log = begun(tmp_path, model)
    skips = arguments(non_finite="skip")
    log.on_log(skips, state(3), TrainerControl(), logs={"eval_loss": math.nan})
    log.on_log(skips, state(4), TrainerControl(), logs={"eval_loss": 3.0})
    assert [line["eval_loss"] for line in read_log(tmp_path)[1:]] == [None, 3.0]
    assert [record.getMessage() for record in caplog.records] == [
        f"{log.path}: step 3: eval_loss is nan; non_finite is skip: the run goes on"
    ]
    with pytest.raises(UpdateRefusedError):
        log.on_log(skips, state(5), TrainerControl(), logs={"loss": math.nan})


def test_a_resumed_run_counts_on_and_repeats_no_line(tmp_path, model):
    now, control = Clock(), TrainerControl()
    log = begun(tmp_path, model, now=now)
    log.on_step_begin(arguments(), state(), control)
    for step in (1, 2, 3):
        now.seconds += 1.0
        log.on_log(arguments(), state(step), TrainerControl(), logs={"loss": 3.0 / step})
        control.should_save = step == 2
        log.on_step_end(arguments(), state(step), control)
        if step == 2:
            now.seconds += 0.5
            log.on_save(arguments(), state(step), control)
            log.on_step_begin(arguments(), state(step), control)
    with open(log.path, "a") as file:
        file.write('{"event": "train", "step": 4, "lo')  # killed in the middle of a line
    again = begun(tmp_path, model, step=2, now=Clock())
    again.on_log(arguments(), state(3), TrainerControl(), logs={"loss": 1.5})
    lines = read_log(tmp_path)
    assert [(line["event"], line["step"]) for line in lines] == [
        ("start", 0), ("train", 1), ("train", 2), ("checkpoint", 2), ("resume", 2), ("train", 3),
    ]  # fmt: skip
    assert lines[-1]["training_seconds"] == 2.0
    assert lines[-1]["checkpoint_seconds"] == 0.5
    assert lines[-1]["loss"] == 1.5


def test_a_checkpoint_whose_line_was_lost_gets_one(tmp_path, model):
    log = begun(tmp_path, model)
    log.on_log(arguments(), state(2), TrainerControl(), logs={"loss": 3.0})
    begun(tmp_path, model, step=2)
    events = [(line["event"], line["step"]) for line in read_log(tmp_path)]
    assert events == [("start", 0), ("train", 2), ("checkpoint", 2), ("resume", 2)]
    assert read_log(tmp_path)[2]["save_seconds"] is None


def test_a_fresh_start_begins_a_new_log(tmp_path, model):
    log = begun(tmp_path, model)
    log.on_log(arguments(), state(1), TrainerControl(), logs={"loss": 3.0})
    begun(tmp_path, model)
    assert [line["event"] for line in read_log(tmp_path)] == ["start"]


def test_the_end_sums_up(tmp_path, model):
    now = Clock()
    log = begun(tmp_path, model, now=now)
    log.on_step_begin(arguments(), state(), TrainerControl())
    for step, loss in ((1, 4.0), (2, 3.0), (3, 3.5)):
        now.seconds += 2.0
        log.on_log(arguments(), state(step), TrainerControl(), logs={"loss": loss})
        log.on_log(arguments(), state(step), TrainerControl(), logs={"eval_loss": loss + 0.5})
    log.on_log(arguments(), state(3), TrainerControl(), logs={"train_runtime": 6.0, "train_loss": 3.5})
    end = read_log(tmp_path)[-1]
    assert (end["event"], end["train_loss"]) == ("end", 3.5)
    summary = end["summary"]
    assert (summary["best_eval_loss"], summary["best_eval_step"], summary["num_evaluations"]) == (3.5, 2, 3)
    assert (summary["final_step"], summary["final_train_loss"]) == (3, 3.5)
    assert summary["median_tokens_per_second"] == 500.0
    assert summary["training_seconds"] == 6.0


def test_the_progress_line_names_what_it_shows():
    line = {"loss": 2.5, "learning_rate": 0.001, "tokens_per_second": 7123.4, "step": 3, "mfu": None}
    assert ", ".join(_facts(line)) == "loss 2.500, 7,123 tok/s, lr 1.0e-03"
    line |= {"mfu": 0.5714, "step_seconds": 2.0, "data_wait_seconds": 0.02, "memory_peak_bytes": 3 * 2**30}
    assert (
        ", ".join(_facts(line)) == "loss 2.500, 7,123 tok/s, MFU 57.1%, lr 1.0e-03, 3.0 GiB, data wait 1.0%"
    )


@pytest.mark.parametrize("columns", [None, 60, 80, 100, 120])
def test_the_progress_line_is_never_cut_in_a_word(columns):
    line = {"loss": 2.5, "eval_loss": 3.0, "tokens_per_second": 1e5, "grad_norm": 1.0, "learning_rate": 1e-3}
    bar = tqdm(total=300, desc="pretrain", bar_format=BAR, file=io.StringIO(), ncols=columns)
    bar.set_postfix_str(", ".join(_fitting(bar, _facts(line))))
    shown = bar.format_meter(**bar.format_dict | {"n": 299, "elapsed": 4000.0})
    bar.close()
    facts = shown.rstrip("]").split(", ")[1:]
    assert facts == _facts(line)[: len(facts)]
    assert facts[:1] == ["loss 2.500"]
    assert columns is not None or facts == _facts(line)
