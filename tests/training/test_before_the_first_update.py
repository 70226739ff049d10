"""A checkpoint made before any update was applied: saving it changes nothing, and the run goes on from it."""

import shutil

import pytest
from transformers import Trainer

from modeling_foundry.training.checkpoints.stored_optimizer import StoredState
from modeling_foundry.training.log.log_file import read_log
from tests.conftest import REPOSITORY
from tests.training.small_run import train

REFUSED_AT_FIRST = """
import runpy, sys
from transformers import Trainer
from modeling_foundry import settings

sound = Trainer.compute_loss

def refused_at_first(self, *args, **kwargs):
    loss = sound(self, *args, **kwargs)
    return loss * float("nan") if self.state.global_step < 1 else loss

Trainer.compute_loss = refused_at_first
sys.argv.pop(0)
settings.run(runpy.run_path(sys.argv[0])["main"])
"""


def losses(run):
    return [(line["step"], line["loss"]) for line in read_log(run) if "loss" in line]


def cut_after(run, step):
    """As a kill after the checkpoint of ``step`` would have left it."""
    for folder in run.glob("checkpoint-*"):
        if folder.name != f"checkpoint-{step}":
            shutil.rmtree(folder)
    shutil.rmtree(run / "model")
    (run / "complete.json").unlink()


@pytest.mark.slow
def test_saving_before_the_first_update_takes_no_step_of_the_optimizer(small_data, tmp_path, monkeypatch):
    sound = Trainer.compute_loss

    def refused_at_first(self, *args, **kwargs):
        loss = sound(self, *args, **kwargs)
        return loss * float("nan") if self.state.global_step < 2 else loss

    monkeypatch.setattr(Trainer, "compute_loss", refused_at_first)
    keys = {"non_finite": "skip", "learning_rate": 1e-2, "keep_checkpoints": 5}
    train(tmp_path / "unsaved", small_data, **keys, save_steps=6)
    run = tmp_path / "run"
    train(run, small_data, **keys)
    assert losses(run) == losses(tmp_path / "unsaved")
    assert not StoredState(run / "checkpoint-2").has_moments()
    assert StoredState(run / "checkpoint-4").has_moments()
    cut_after(run, 2)
    train(run, small_data, **keys)
    assert losses(run) == losses(tmp_path / "unsaved")


@pytest.mark.slow
def test_zero_goes_on_from_before_its_first_update(small_data, tmp_path, launch):
    """The step before the checkpoint was refused; DeepSpeed's optimizer holds no state yet."""
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    run = tmp_path / "run"
    words = [
        "--config", str(REPOSITORY / "recipes/shakespeare/pretrain.yaml"), f"--data_dir={small_data}",
        f"--output_dir={run}", "--hidden_size=32", "--intermediate_size=64", "--num_hidden_layers=2",
        "--num_attention_heads=2", "--num_key_value_heads=1", "--head_dim=16", "--sequence_length=32",
        "--optimizer=adamw", "--max_steps=3", "--save_steps=1", "--logging_steps=1", "--eval_strategy=no",
        "--per_device_train_batch_size=2", "--non_finite=skip", "--keep_checkpoints=5",
    ]  # fmt: skip
    script = tmp_path / "refused_at_first.py"
    script.write_text(REFUSED_AT_FIRST)
    words.insert(0, str(REPOSITORY / "recipes" / "pretrain.py"))
    launch("pretrain", *words, ranks=2, engine="zero1", script=script, PYTHONPATH=str(REPOSITORY))
    whole = losses(run)
    assert [step for step, _ in whole] == [2, 3]
    assert not StoredState(run / "checkpoint-1").has_moments()
    cut_after(run, 1)
    launch("pretrain", *words, ranks=2, engine="zero1", script=script, PYTHONPATH=str(REPOSITORY))
    assert losses(run) == whole
