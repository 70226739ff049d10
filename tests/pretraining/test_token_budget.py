"""Tokens become steps, and the learning rate of every step is the closed form."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry import settings
from modeling_foundry.pretraining.pipeline import PretrainArguments
from modeling_foundry.pretraining.token_budget import resolve_plan
from modeling_foundry.settings import FoundryError
from tests.training.tiny_training import SEQUENCE_LENGTH, learning_rates, tiny_trainer

WSD = "--lr_scheduler_type=warmup_stable_decay"


def arguments(*words, tmp_path="runs/unused"):
    defaults = ["--use_cpu=true", "--per_device_train_batch_size=4", "--learning_rate=0.01"]
    given = {word.split("=")[0] for word in words}
    words = [*words, *(word for word in defaults if word.split("=")[0] not in given)]
    (parsed,) = settings.parse(PretrainArguments, argv=[f"--output_dir={tmp_path}", *words])
    return parsed


def counted(*words, tmp_path="runs/unused"):
    return resolve_plan(arguments(*words, tmp_path=tmp_path), SEQUENCE_LENGTH)


def test_lengths_in_tokens_are_rounded_up_to_steps():
    """A step is 4 x 3 x 1 x 16 = 192 tokens."""
    plan = counted(
        "--gradient_accumulation_steps=3", "--max_tokens=2e3", "--warmup_tokens=193", WSD, "--decay_tokens=576"
    )  # fmt: skip
    assert plan.tokens_per_step == 192
    assert plan.max_steps == plan.arguments.max_steps == 11
    assert plan.warmup_steps == plan.arguments.warmup_steps == 2
    assert plan.schedule_options == plan.arguments.lr_scheduler_kwargs == {"num_decay_steps": 3}
    assert plan.last_stable_step == 8
    assert plan.origins == {
        "max_steps": "max_tokens", "warmup_steps": "warmup_tokens", "schedule_options": "decay_tokens",
    }  # fmt: skip


def test_the_arguments_that_were_parsed_stay_as_they_are_and_the_plan_is_frozen():
    parsed = arguments("--max_tokens=2e3", "--global_batch_tokens=192", "--per_device_train_batch_size=4")
    before = vars(parsed).copy()
    plan = resolve_plan(parsed, SEQUENCE_LENGTH)
    assert vars(parsed) == before
    assert (plan.accumulation, plan.arguments.gradient_accumulation_steps) == (3, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.max_steps = 4
    record = plan.record()
    assert record["origins"]["accumulation"] == "global_batch_tokens"
    assert (record["max_steps"], record["precision"], record["num_epochs"]) == (11, "no", None)
    assert "arguments" not in record


@given(st.integers(1, 10**13), st.integers(1, 64), st.integers(1, 64))
def test_no_token_asked_for_is_left_out_and_less_than_a_step_added(max_tokens, micro_batch, accumulation):
    parsed = arguments()
    parsed.per_device_train_batch_size, parsed.gradient_accumulation_steps = micro_batch, accumulation
    parsed.max_tokens = max_tokens
    plan = resolve_plan(parsed, SEQUENCE_LENGTH)
    step_tokens = micro_batch * accumulation * SEQUENCE_LENGTH
    assert plan.tokens_per_step == step_tokens
    assert 0 <= plan.max_steps * step_tokens - max_tokens < step_tokens


@given(st.integers(1, 10**7), st.integers(1, 64), st.integers(1, 512))
def test_a_global_batch_gives_the_accumulation_or_the_nearest_that_fit(tokens, micro_batch, ranks):
    class Ranks(PretrainArguments):
        world_size = ranks

    parsed = arguments("--max_steps=1")
    parsed.__class__ = Ranks
    parsed.per_device_train_batch_size, parsed.global_batch_tokens = micro_batch, tokens
    smallest = micro_batch * ranks * SEQUENCE_LENGTH
    if tokens % smallest == 0:
        plan = resolve_plan(parsed, SEQUENCE_LENGTH)
        assert plan.accumulation * smallest == tokens == plan.tokens_per_step
        return
    with pytest.raises(FoundryError, match="global_batch_tokens") as error:
        resolve_plan(parsed, SEQUENCE_LENGTH)
    above = -(-tokens // smallest) * smallest
    assert f"{above:,}" in str(error.value)
    assert above == smallest or f"{above - smallest:,} and {above:,} fit" in str(error.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_tokens=1000", "--max_steps=5"], r"max_tokens: 1,000 \(16 steps\) stands beside max_steps 5"),
        ([], "max_steps: missing; give max_steps or max_tokens, or --config FILE"),
        (
            ["--max_steps=9", "--warmup_tokens=64", "--warmup_steps=2"],
            r"warmup_tokens: 64 \(1 steps\) stands beside warmup_steps 2",
        ),
        (["--max_steps=9", "--warmup_tokens=64", "--warmup_steps=0.5"], "stands beside warmup_steps 0.5"),
        (
            ["--max_steps=9", "--global_batch_tokens=128", "--gradient_accumulation_steps=3"],
            r"global_batch_tokens: 128 \(2 steps\) stands beside gradient_accumulation_steps 3",
        ),
        (["--max_steps=9", "--global_batch_tokens=100"], "64 and 128 fit"),
        (["--max_steps=9", "--global_batch_tokens=10"], "64, the smallest, fits"),
        (
            ["--max_steps=9", "--decay_tokens=64"],
            "decay_tokens: cosine_with_min_lr decays over the whole run",
        ),
        (["--max_steps=9", WSD], "warmup_stable_decay needs decay_tokens"),
        (
            ["--max_steps=9", WSD, "--decay_tokens=64", "--lr_scheduler_kwargs={num_decay_steps: 2}"],
            "stands beside lr_scheduler_kwargs.num_decay_steps 2",
        ),
        (["--max_steps=9", WSD, "--decay_tokens=512", "--warmup_steps=2"], "are more than max_steps 9"),
        (
            ["--max_steps=9", WSD, "--decay_tokens=64", "--lr_scheduler_kwargs={min_lr_rate: 0.1}"],
            "lr_scheduler_kwargs: .* does not suit warmup_stable_decay",
        ),
        (
            ["--max_steps=9", WSD, "--decay_tokens=64", "--lr_scheduler_kwargs={decay_type: cubic}"],
            "Unknown decay type: cubic",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(words, message):
    with pytest.raises(FoundryError, match=message) as error:
        counted(*words)
    assert "\n" not in str(error.value)


def cosine(step, steps, warmup, lowest):
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / (steps - warmup)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * progress))


def wsd(step, steps, warmup, decay, lowest):
    if step < warmup:
        return lowest + (1 - lowest) * step / warmup
    if step < steps - decay:
        return 1.0
    return lowest + (1 - lowest) * (1 - math.sqrt((step - (steps - decay)) / decay))


def test_cosine_in_tokens_is_the_closed_form(tmp_path):
    """Step k (from 1) is taken with the rate of k - 1 finished steps; a step is 64 tokens."""
    plan = counted("--max_tokens=1280", "--warmup_tokens=256", tmp_path=tmp_path)
    expected = [0.01 * cosine(step, 20, 4, 0.1) for step in range(20)]
    assert learning_rates(tiny_trainer(plan.arguments)) == pytest.approx(expected, rel=1e-9)


def test_warmup_stable_decay_in_tokens_is_the_closed_form(tmp_path):
    plan = counted(
        WSD, "--max_tokens=1280", "--warmup_tokens=256", "--decay_tokens=384",
        "--lr_scheduler_kwargs={decay_type: 1-sqrt, min_lr_ratio: 0.1}", tmp_path=tmp_path,
    )  # fmt: skip
    assert plan.last_stable_step == 14
    expected = [0.01 * wsd(step, 20, 4, 6, 0.1) for step in range(20)]
    assert learning_rates(tiny_trainer(plan.arguments)) == pytest.approx(expected, rel=1e-9)
