"""What ``benchmarks/pretrain_speed.py`` reads of a run that it starts in its own process."""

import json

import pytest

from tests.conftest import REPOSITORY

MEASURE_OURS = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
import pretrain_speed

def main():
    os.environ[pretrain_speed.LAUNCHED] = str(pretrain_speed.BEGAN)
    words = sys.argv[1:]
    run = Path(next(word for word in words if word.startswith("--output_dir=")).partition("=")[2])
    found = pretrain_speed.train_ours(words, run)
    if os.environ["RANK"] == "0":
        (run / "found.json").write_text(json.dumps(found))

pretrain_speed.run(main)
"""


@pytest.mark.slow
def test_a_run_in_a_process_group_is_read_after_its_end(small_data, tmp_path, launch):
    """Ranks end their process themselves where the recipe is a script: once the row was never written."""
    run = tmp_path / "run"
    script = tmp_path / "measure_ours.py"
    script.write_text(MEASURE_OURS)
    words = [
        f"--config={REPOSITORY / 'recipes/quickstart/pretrain.yaml'}", f"--data_dir={small_data}",
        f"--output_dir={run}", "--hidden_size=32", "--intermediate_size=64", "--num_hidden_layers=2",
        "--num_attention_heads=2", "--num_key_value_heads=1", "--head_dim=16", "--sequence_length=32",
        "--max_steps=4", "--save_strategy=no", "--logging_steps=1", "--eval_strategy=no",
        "--per_device_train_batch_size=2",
    ]  # fmt: skip
    launch("pretrain", *words, ranks=2, script=script, PYTHONPATH=str(REPOSITORY))
    found = json.loads((run / "found.json").read_text())
    assert len(found["step_seconds"]) == 2  # the first two are warm-up
    assert list(found["seconds_since_launch"])[-1] == "preflight"
