"""A loss is the same on two ranks as on one, with accumulation, and over any evaluation batch."""

import json
from functools import cache
from pathlib import Path

import pytest

from tests import warm_start
from tests.conftest import REPOSITORY
from tests.training import alignment_runs
from tests.training.alignment_runs import CASES, changes_of, history, trainer_of
from tests.training.conftest import launch_command, launch_environment

SCRIPT = Path(alignment_runs.__file__)


@pytest.fixture(scope="module")
def two_ranks(tiny_checkpoint, uneven, tmp_path_factory):
    """What every case logged on two ranks of two samples."""
    output = tmp_path_factory.mktemp("two") / "told.json"
    command = launch_command(SCRIPT, str(tiny_checkpoint), str(uneven), str(output), ranks=2)
    finished = warm_start.run(command, cwd=REPOSITORY, env=launch_environment(PYTHONPATH=str(REPOSITORY)))
    assert finished.returncode == 0, f"{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"
    return json.loads(output.read_text())


def same(first, second):
    assert len(first) == len(second) > 1
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        assert theirs == pytest.approx(ours, rel=2e-4, abs=2e-6)


@pytest.fixture(scope="module")
def of_one_rank(tiny_checkpoint, uneven, tmp_path_factory):
    """What a case logs on one rank of four samples; trained once."""
    output_dir = tmp_path_factory.mktemp("one")

    @cache
    def told(stage, name):
        return history(trainer_of(stage, tiny_checkpoint, uneven, output_dir, **changes_of(stage, name)))

    return told


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "name"), CASES)
def test_two_ranks_of_two_are_one_of_four(stage, name, two_ranks, of_one_rank):
    same(of_one_rank(stage, name), two_ranks[f"{stage} {name}"])


@pytest.mark.slow
def test_two_ranks_of_pretraining_tell_the_held_out_loss_of_one(two_ranks, tmp_path):
    of_one = alignment_runs.pretraining_held_out(tmp_path, batch=7)
    assert two_ranks["pretrain"] == pytest.approx(of_one, rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("sft", "padded"),
        ("sft", "packed"),
        ("sft", "smoothed"),
        ("dpo", "quickstart"),
        ("dpo", "sigmoid_norm"),
        ("dpo", "precomputed"),
    ],
)
def test_accumulation_of_two_is_one_of_four(stage, name, of_one_rank, tiny_checkpoint, uneven, tmp_path):
    changes, one = changes_of(stage, name), of_one_rank(stage, name)
    accumulated = trainer_of(
        stage, tiny_checkpoint, uneven, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        per_device_eval_batch_size=3, **changes,
    )  # fmt: skip
    same(one, history(accumulated))
