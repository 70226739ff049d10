"""No update from a NaN, an Inf or a refused spike; the samples are named; every rank agrees, on every back end."""

import json
import math
import statistics
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.sequences.sample_order import SampleOrder, read_order, write_order
from modeling_foundry.pretraining.rollback import left_out_by, order_after
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.log.log_file import read_log
from modeling_foundry.training.processes.endings import UpdateRefusedError
from modeling_foundry.training.safety.loss_spikes import LossWindow, SpikeFoundError
from modeling_foundry.training.safety.update_guard import (
    GuardKeys,
    GuardWindow,
    UpdateGuard,
    Vote,
    owes_evaluation,
)
from tests.conftest import REPOSITORY, SOURCE_TEXT

FAULTY = REPOSITORY / "tests" / "training" / "faulty_pretrain.py"
SIZES = [
    "--hidden_size=32", "--intermediate_size=64", "--num_hidden_layers=2", "--num_attention_heads=2",
    "--num_key_value_heads=1", "--head_dim=16", "--sequence_length=32", "--text_file_vocab_size=320",
]  # fmt: skip


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "input.txt"
    path.write_text(SOURCE_TEXT)
    return path


@pytest.fixture
def faulty(launch, text_file, tmp_path):
    """Launch the recipe with a fault; returns the finished process, its output is in ``tmp_path``."""

    def run(fault, *more, ranks=2, engine="ddp", check=True):
        micro_batch = 4 // ranks
        settings = [
            "--config", str(REPOSITORY / "recipes/shakespeare/pretrain.yaml"), f"--text_file={text_file}",
            f"--output_dir={tmp_path}",
            f"--per_device_train_batch_size={micro_batch}", "--gradient_accumulation_steps=2",
            "--logging_steps=1", "--optimizer=adamw", *SIZES, *more,
        ]  # fmt: skip
        if not any(word.startswith("--eval_strategy") for word in more):
            settings.append("--eval_strategy=no")
        return launch(
            "pretrain",
            *settings,
            ranks=ranks,
            engine=engine,
            check=check,
            script=FAULTY,
            FAULT=json.dumps(fault),
        )

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def states(folder, rank):
    return {line.pop("step"): line for line in lines(folder / f"states-rank-{rank}.jsonl")}


# Eight sequences a step: sample 21 is of step 3, second micro-batch (20..23), its first half: rank 0.
NAN = {"kind": "loss", "sample": 21, "factor": "nan"}
INFINITE_GRADIENT = {"kind": "gradient", "step": 3, "rank": 1}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero1", "fsdp2"])
@pytest.mark.parametrize("fault", [NAN, INFINITE_GRADIENT], ids=["loss", "gradient"])
def test_a_skipped_update_leaves_every_bit_where_it_was(fault, engine, faulty, tmp_path):
    faulty(fault, "--non_finite=skip", "--max_steps=4", "--save_steps=3", engine=engine)
    for rank in (0, 1):
        seen = states(tmp_path, rank)
        assert seen[3] == seen[2], "refused: weights, moments, counters and schedule as before"
        assert seen[2] != seen[1]
        assert seen[4]["weights"] != seen[3]["weights"], "and it goes on"
        assert seen[4]["optimizer"] != seen[3]["optimizer"]
    assert states(tmp_path, 0)[4]["scheduler"] == 3
    (record,) = lines(tmp_path / "skipped_updates.jsonl")
    if fault is NAN:
        assert record == {"step": 3, "reason": "loss is nan on rank 0", "rank": 0, "samples": [20, 21]}
    else:
        assert record["reason"].startswith("gradient norm is ")
        assert record["rank"] is None
        assert record["samples"] == list(range(16, 24))
    log = read_log(tmp_path)
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 4]
    assert all(
        math.isfinite(line["loss"]) and math.isfinite(line["grad_norm"]) for line in log if "loss" in line
    )
    mean = statistics.mean(line["loss"] for line in log if "loss" in line)
    assert log[-1]["train_loss"] == pytest.approx(mean)


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "ranks"), [("ddp", 2), ("zero1", 2), ("ddp", 1)])
def test_by_default_the_run_stops_before_the_update(engine, ranks, faulty, tmp_path):
    ended = faulty(NAN, "--max_steps=4", "--save_steps=1", engine=engine, ranks=ranks, check=False)
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if "error: " in line]
    assert len([line for line in said if "step 3" in line]) == 1, said
    assert "loss is nan on rank 0" in ended.stderr
    assert "samples 16 to 23" in ended.stderr
    assert f"exitcode: {65}" in ended.stderr or "exit status 65" in ended.stderr
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert (stopped["exit_code"], stopped["step"]) == (65, 2)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert not (tmp_path / "complete.json").exists()
    assert not (tmp_path / "model").exists()
    # and the advice works: the same run goes on with another policy
    faulty(NAN, "--max_steps=4", "--save_steps=1", "--non_finite=skip", engine=engine, ranks=ranks)
    assert (tmp_path / "complete.json").exists()
    assert not (tmp_path / "stopped.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_held_out_loss_that_is_not_finite_ends_the_run_with_words(ranks, faulty, tmp_path):
    fault = {"kind": "evaluation", "step": 2}
    words = ("--max_steps=3", "--save_steps=1", "--eval_strategy=steps", "--eval_steps=1")
    ended = faulty(fault, *words, ranks=ranks, check=False)
    assert ended.returncode != 0
    said = [line for line in ended.stderr.splitlines() if "error: " in line and "eval_loss is nan" in line]
    assert len(said) == 1, ended.stderr
    stopped = json.loads((tmp_path / "stopped.json").read_text())
    assert (stopped["exit_code"], stopped["step"]) == (65, 2)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-1"}
    assert not (tmp_path / "model").exists()
    # no weight comes from that loss: the policy that skips goes on behind it
    faulty(fault, *words, "--non_finite=skip", ranks=ranks)
    assert (tmp_path / "complete.json").exists()


# Eight sequences a step: sample 92 is of step 12.
SPIKE = {"kind": "loss", "sample": 92, "factor": 50}
WATCH = ("--spike_window_steps=8", "--max_steps=14", "--save_steps=5")


@pytest.mark.slow
def test_a_spike_is_left_out_and_the_run_goes_on(faulty, tmp_path):
    faulty(SPIKE, "--loss_spike=skip", *WATCH)
    seen = states(tmp_path, 0)
    assert seen[12] == seen[11]
    assert seen[13] != seen[12]
    (record,) = lines(tmp_path / "skipped_updates.jsonl")
    assert record["step"] == 12
    assert record["samples"] == list(range(88, 96))
    kept = json.loads((tmp_path / "checkpoint-14" / "update_guard.json").read_text())
    losses = {line["step"]: line["loss"] for line in read_log(tmp_path) if "loss" in line}
    assert kept["losses"] == pytest.approx([losses[step] for step in (5, 6, 7, 8, 9, 10, 11, 13, 14)][-8:])


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero1", "fsdp2"])
def test_a_spike_is_rolled_back_and_its_samples_are_never_read_again(engine, faulty, tmp_path):
    done = faulty(SPIKE, "--loss_spike=rollback", "--rollback_steps=2", *WATCH, engine=engine)
    assert "back to checkpoint-10; 16 sample(s) are left out from step 11 on" in done.stdout
    assert read_order(tmp_path) == SampleOrder(8, ((11, 16),))
    assert (tmp_path / "complete.json").exists()
    for rank in (0, 1):
        taken = [(line["step"], line["weights"]) for line in lines(tmp_path / f"states-rank-{rank}.jsonl")]
        assert [step for step, _ in taken] == [*range(1, 12), *range(11, 15)]
    assert len([line for line in read_log(tmp_path) if "loss" in line]) == 14


def test_the_order_of_a_start_that_never_began_counts_for_nothing(tmp_path):
    from modeling_foundry.pretraining.batch import accumulation_to_follow, follow_words, order_of
    from modeling_foundry.pretraining.pipeline import PretrainArguments
    from modeling_foundry.pretraining.token_budget import resolve_plan

    write_order(tmp_path, SampleOrder(48))
    arguments = PretrainArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=4, max_steps=1)

    def resolved():
        return resolve_plan(arguments, 32, accumulation_to_follow(arguments))

    assert order_of(resolved()) == SampleOrder(4)
    record = {"settings": {"training": {"gradient_accumulation_steps": 1}}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert order_of(resolved()) == SampleOrder(48)
    assert resolved().accumulation == 12
    assert "so gradient_accumulation_steps is 12: a step reads 48 sequences" in follow_words(resolved())
    arguments.per_device_train_batch_size = 5
    with pytest.raises(
        FoundryError, match="per_device_train_batch_size 5 does not divide that; give a divisor of 48"
    ):
        resolved()


@pytest.mark.slow
def test_too_many_rollbacks_end_the_run_with_words(faulty, tmp_path):
    ended = faulty(SPIKE, "--loss_spike=rollback", "--max_rollbacks=0", *WATCH, check=False)
    assert "step 12: loss" in ended.stderr
    assert "0 rollback(s) were made already (max_rollbacks)" in ended.stderr
    assert json.loads((tmp_path / "stopped.json").read_text())["exit_code"] == 65
    assert not (tmp_path / "complete.json").exists()


# ------------------------------------------------------------------ arithmetic


@given(st.lists(st.floats(2, 3), min_size=31, max_size=31), st.floats(10, 1e6), st.integers(0, 31))
def test_one_outlier_does_not_move_the_limit_far(losses, outlier, place):
    window = LossWindow(32, deviations=6)
    for loss in [*losses[:place], outlier, *losses[place:]]:
        assert window.limit() == math.inf
        window.add(loss)
    assert 2 <= window.limit() <= 3 + 6 * 1.4826 * 1.01


@given(st.lists(st.floats(1, 8), min_size=8, max_size=20), st.floats(0.5, 4))
def test_the_limit_has_the_unit_of_the_losses(losses, factor):
    one, other = LossWindow(8, 6), LossWindow(8, 6)
    for loss in losses:
        one.add(loss)
        other.add(factor * loss)
    assert other.limit() == pytest.approx(factor * one.limit())
    assert one.limit() > statistics.median(losses[-8:])


@given(st.integers(1, 16), st.integers(0, 30), st.integers(1, 20), st.integers(1, 40))
def test_a_rollback_never_reads_the_spike_and_changes_no_step_that_stays(size, checkpoint, after, num_steps):
    order, spike = SampleOrder(size), checkpoint + after
    new = left_out_by(order, spike, checkpoint, num_steps)
    assert all(new.samples(step) == order.samples(step) for step in range(1, checkpoint + 1))
    read = {index for step in range(1, spike + 50) for index in new.samples(step)}
    assert not read & set(order.samples(spike))


SPIKES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 29), st.integers(1, 5)), min_size=2, max_size=4
)


@given(st.integers(1, 16), SPIKES)
def test_a_second_rollback_to_before_the_first_brings_no_spike_back(size, spikes):
    order, gone = SampleOrder(size), set()
    for step, checkpoint, num_steps in spikes:
        before, start = order, min(checkpoint, step - 1)
        for spoiled in range(max(start + 1, step - num_steps + 1), step + 1):
            gone |= set(order.samples(spoiled))
        order = left_out_by(order, step, start, num_steps)
        assert order.begins_as(before, start)
        assert not gone & {index for step in range(1, 60) for index in order.samples(step)}
    samples_left_out = sum(number for _, number in order.left_out)
    assert samples_left_out == len(gone)


def test_rollbacks_are_counted_over_restarts(tmp_path):
    order = SampleOrder(8, ((3, 8), (5, 8)))
    with pytest.raises(UpdateRefusedError, match="2 rollback"):
        order_after(SpikeFoundError(9, 40.0, 5.0), tmp_path, order, max_rollbacks=2, num_steps=1)
    new, words = order_after(SpikeFoundError(9, 40.0, 5.0), tmp_path, order, max_rollbacks=3, num_steps=1)
    assert new.left_out[-1] == (9, 8)
    assert "back to the start" in words


def test_training_is_tried_again_after_each_rollback(small_data, tmp_path, monkeypatch):
    from modeling_foundry.pretraining import pipeline as pretraining
    from tests.training.small_run import train

    spikes, rolled = [SpikeFoundError(5, 9.0, 4.0), SpikeFoundError(7, 9.0, 4.0)], []

    def train_once(*_):
        if spikes:
            raise spikes.pop(0)

    monkeypatch.setattr(pretraining, "train_once", train_once)
    monkeypatch.setattr(pretraining, "roll_back", lambda spike, plan: rolled.append(spike))
    train(tmp_path, small_data)
    assert [spike.step for spike in rolled] == [5, 7]
    assert all(spike.__traceback__ is None for spike in rolled), "its frames would hold the model"


# ------------------------------------------------------------------ the window through a resume


def guard_in(folder, order=None, **keys):
    return UpdateGuard(GuardKeys(**keys), folder, order, num_ranks=2, micro_batch=2)


def test_the_window_survives_a_resume_and_a_damaged_one_is_named(tmp_path):
    folder = tmp_path / "checkpoint-4"

    def window_of(guard):
        return GuardWindow(SimpleNamespace(guard=guard, is_world_process_zero=lambda: True))

    before = guard_in(tmp_path, spike_window_steps=8)
    for loss in (3.0, 2.5, 2.0):
        before.window.add(loss)
    before.num_in_a_row, before.owes_evaluation = 2, True
    window_of(before).save(folder)
    after = guard_in(tmp_path, spike_window_steps=8)
    window_of(after).load(folder)
    assert list(after.window.losses) == [3.0, 2.5, 2.0]
    assert (after.num_in_a_row, owes_evaluation(folder)) == (2, True)
    for content in ("", "{}", '{"losses": 3}'):
        (folder / "update_guard.json").write_text(content)
        with pytest.raises(FoundryError, match=r"checkpoint-4/update_guard\.json: cannot be read"):
            window_of(guard_in(tmp_path)).load(folder)


def test_the_rank_at_fault_is_named():
    votes = [Vote(2.0, 1.0, 0), Vote(math.inf, 1.0, 0), Vote(math.nan, 1.0, 0)]
    assert UpdateGuard._fault(votes, math.nan) == "loss is nan on rank 1, rank 2"
    assert UpdateGuard._fault([Vote(2.0, math.inf, 0)], 2.0) == "gradient norm is inf"
    assert UpdateGuard._fault([Vote(2.0, 1.0, 1)], 2.0) is None


@pytest.mark.parametrize("order", [None, SampleOrder(4)])
def test_replay_is_named_where_it_can_show_the_samples(order, tmp_path):
    """In SFT and DPO nobody knows them."""
    trainer = SimpleNamespace(is_world_process_zero=lambda: True)
    with pytest.raises(UpdateRefusedError) as refused:
        guard_in(tmp_path, order)._refuse(trainer, 3, "loss is nan on rank 0", None, must_stop=True)
    shown = f"samples 8 to 11 (recipes/pretrain.py replay --run_dir {tmp_path} --step 3 shows them)"
    unknown = "which samples it read is recorded in pretraining alone"
    assert str(refused.value).endswith(f"nothing of this step is saved; {shown if order else unknown}")


def test_rollback_needs_to_know_the_samples(tmp_path):
    with pytest.raises(FoundryError, match="loss_spike: rollback is for pretraining"):
        guard_in(tmp_path, loss_spike="rollback")
