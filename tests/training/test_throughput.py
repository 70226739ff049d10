"""MFU by hand, at one, two and eight ranks; what has no peak has no MFU."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry import FoundryConfig
from modeling_foundry.training.log.throughput import (
    CHECKPOINT,
    EVALUATION,
    TRAINING,
    RunClock,
    ThroughputMeter,
    TimedBatches,
    model_flops,
)

# The flagship: matmul weights (head in, input embedding out), and attention at S = 2048.
MATMUL_WEIGHTS = 24 * (2 * 2048 * (16 + 8) * 128 + 3 * 2048 * 6144) + 151936 * 2048
FULL = 6 * MATMUL_WEIGHTS + 12 * 24 * 16 * 128 * 2048
CAUSAL = 6 * MATMUL_WEIGHTS + 6 * 24 * 16 * 128 * 2048
H200 = "NVIDIA H200"


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def flagship():
    return FoundryConfig(
        vocab_size=151936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=24,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, max_position_embeddings=2048,
    ).to_dict()  # fmt: skip


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_mfu_does_not_change_with_the_number_of_ranks(num_ranks):
    """Each rank trains 16 x 4 sequences a step in 2.4 s of training: the same MFU whatever their number."""
    now = Clock()
    clock = RunClock(now, lambda: None)
    meter = ThroughputMeter(clock, model_flops(flagship(), 2048, H200, "bf16", num_ranks))
    tokens_per_step = 16 * 4 * num_ranks * 2048
    meter.start(0, 0)
    clock.switch(TRAINING)
    for step in range(1, 11):
        now.seconds += 2.4
        if step % 5 == 0:
            clock.switch(EVALUATION)
            now.seconds += 60
            clock.switch(CHECKPOINT)
            now.seconds += 30
            clock.switch(TRAINING)
    lap = meter.lap(10, 10 * tokens_per_step)
    per_rank = 16 * 4 * 2048 / 2.4
    assert lap["num_steps"] == 10
    assert lap["tokens_per_second"] == pytest.approx(per_rank * num_ranks)
    assert lap["step_seconds"] == pytest.approx(2.4)
    assert lap["mfu"] == pytest.approx(per_rank * FULL / 989e12)
    assert lap["mfu_causal"] == pytest.approx(per_rank * CAUSAL / 989e12)
    assert lap["model_tflops_per_rank"] == pytest.approx(per_rank * FULL / 1e12)
    assert 0.5 < lap["mfu_causal"] < lap["mfu"] < 0.6
    assert clock.totals() == {
        "training_seconds": 24.0, "evaluation_seconds": 120.0, "checkpoint_seconds": 60.0,
    }  # fmt: skip


def test_the_design_s_figures_of_the_flagship():
    flops = model_flops(flagship(), 2048, H200, "bf16", 1)
    assert (flops.full_per_token, flops.causal_per_token) == (FULL, CAUSAL)
    assert flops.full_per_token == pytest.approx(10.32e9, rel=1e-3)
    assert flops.causal_per_token == pytest.approx(9.72e9, rel=1e-3)
    assert flops.denominator == "H200, dense bf16, 989 TFLOP/s a rank"


def test_the_earlier_system_s_run_on_eight_b200():
    """633.1k tokens/s on 8 x B200 were 36.3% of the dense peak."""
    flops = model_flops(flagship(), 2048, "NVIDIA B200", "bf16", 8)
    assert flops.rates(633_100)["mfu"] == pytest.approx(0.363, abs=5e-4)


@pytest.mark.parametrize(
    ("device", "precision", "words"),
    [
        (None, "bf16", "a CPU has no dense peak"),
        ("NVIDIA GeForce GTX 1080", "bf16", "'NVIDIA GeForce GTX 1080' is not in the planner's table"),
        ("NVIDIA H200 MIG 3g.71gb", "bf16", "is not in the planner's table"),
        (H200, "fp32", "no fp32 peak of the H200"),
    ],
)
def test_without_a_peak_there_is_no_mfu(device, precision, words):
    flops = model_flops(flagship(), 2048, device, precision, 2)
    assert words in flops.denominator
    rates = flops.rates(1000.0)
    assert rates["mfu"] is None
    assert rates["mfu_causal"] is None
    assert rates["model_tflops_per_rank"] == pytest.approx(500 * FULL / 1e12)


def test_no_steps_no_rates():
    meter = ThroughputMeter(RunClock(Clock(), lambda: None))
    meter.start(5, 5000)
    assert meter.lap(5, 5000) == {}
    assert meter.lap(6, 6000) == {}  # no time has passed


def test_the_device_is_waited_for_only_when_training_stands_still():
    waits = []
    clock = RunClock(Clock(), lambda: waits.append(1))
    clock.switch(TRAINING)
    clock.switch(TRAINING)
    clock.read()
    clock.totals()
    assert waits == []
    clock.switch(EVALUATION)
    clock.switch(CHECKPOINT)
    clock.switch(None)
    assert waits == [1]


@pytest.mark.parametrize(("is_busy", "waited"), [(False, 2.0), (True, 0.0)])
def test_a_wait_that_the_device_works_through_costs_nothing(is_busy, waited):
    now = Clock()
    clock = RunClock(now, lambda: None)

    def batches():
        now.seconds += 2.0
        yield "batch"

    assert next(TimedBatches(batches(), clock, lambda: is_busy)) == "batch"
    assert clock.data_wait_seconds == waited


def test_a_batch_that_is_asked_for_ends_the_checkpoint():
    now = Clock()
    clock = RunClock(now, lambda: None)
    clock.switch(CHECKPOINT)
    now.seconds = 2.0
    batches = TimedBatches(iter([1]), clock)
    assert next(batches) == 1
    now.seconds = 3.0
    with pytest.raises(StopIteration):
        next(batches)
    assert clock.totals() == {
        "training_seconds": 1.0,
        "evaluation_seconds": 0.0,
        "checkpoint_seconds": 2.0,
    }


@given(
    st.lists(
        st.tuples(st.sampled_from([TRAINING, EVALUATION, CHECKPOINT, None]), st.integers(0, 1000)),
        max_size=30,
    )
)
def test_no_second_is_lost_or_counted_twice(parts):
    now = Clock()
    clock = RunClock(now, lambda: None)
    expected = dict.fromkeys((TRAINING, EVALUATION, CHECKPOINT, None), 0)
    for activity, seconds in parts:
        clock.switch(activity)
        now.seconds += seconds
        expected[activity] += seconds
    for activity in (TRAINING, EVALUATION, CHECKPOINT):
        assert clock.read(activity) == expected[activity]
