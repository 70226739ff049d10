"""The comparison of optimizers runs from its command line, and says what it measured."""

import json
import os
import sys

import pytest

from tests import warm_start
from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "benchmarks" / "optimizers.py"


def compare(folder, *words):
    return warm_start.run(
        [sys.executable, str(SCRIPT), "--use_cpu=true", f"--folder={folder}/runs", *words],
        env={**os.environ, "OUT": str(folder), "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
    )  # fmt: skip


@pytest.mark.slow
def test_both_optimizers_are_measured_and_the_samples_kept(tmp_path):
    done = compare(tmp_path, "--models=[tiny]", "--seconds=0.5")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "optimizers.json").read_text())["rows"]
    assert [row["optimizer"] for row in rows] == ["adamw", "muon"]
    for row in rows:
        losses = list(row["held_out"].values())
        assert losses[-1] < losses[0] - 0.1, "nothing was learned"
        assert row["seconds"] == row["steps"] * row["step_seconds"]
        assert row["tokens"] == row["steps"] * 8 * 64
        assert any("loss" in line for line in row["log"])
    assert "tiny: Muon" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_a_run_over_its_time_limit_is_a_failed_row_and_an_exit_code(tmp_path):
    done = compare(tmp_path, "--models=[tiny]", "--limit_seconds=1")
    assert done.returncode != 0
    assert "prepare_data.py: more than 1 s" in done.stdout + done.stderr


def test_an_unknown_model_is_refused(tmp_path):
    done = compare(tmp_path, "--models=[7b]")
    assert done.returncode == 2
    assert "models: 7b is none of tiny, 110m, 0.6b" in done.stderr
