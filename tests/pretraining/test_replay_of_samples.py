"""What a rollback left out is in no step any more; replay shows it by its samples."""

import json
import re

import pytest
from transformers import Trainer

from modeling_foundry.data.sequences.sample_order import SampleOrder, read_order
from modeling_foundry.pretraining.commands import ReplaySettings
from modeling_foundry.pretraining.replay import replay
from modeling_foundry.settings import FoundryError
from tests.training.small_run import train


@pytest.mark.slow
def test_the_samples_of_a_spike_are_shown_after_the_rollback(small_data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    sound, done = Trainer.compute_loss, []

    def spiked_once(self, *args, **kwargs):
        loss = sound(self, *args, **kwargs)
        if self.state.global_step == 9 and not done:
            done.append(loss)
            return loss * 50
        return loss

    monkeypatch.setattr(Trainer, "compute_loss", spiked_once)
    train(run, small_data, loss_spike="rollback", spike_window_steps=8, max_steps=12, save_steps=4)
    assert read_order(run) == SampleOrder(4, ((10, 4),))
    (record,) = [json.loads(line) for line in (run / "skipped_updates.jsonl").read_text().splitlines()]
    assert record["samples"] == [36, 37, 38, 39]
    capsys.readouterr()

    replay(ReplaySettings(str(run), step=10))
    assert shown(capsys) == ["40", "41", "42", "43"], "what step 10 read in the end"
    replay(ReplaySettings(str(run), samples=record["samples"], checkpoint=str(run / "checkpoint-8")))
    assert shown(capsys) == ["36", "37", "38", "39"]
    replay(ReplaySettings(str(run), step=12))
    assert shown(capsys)[-1] == "51", "the last sample of the run"
    with pytest.raises(FoundryError, match="samples: .* has samples 0 to 51, found 52"):
        replay(ReplaySettings(str(run), samples=[52]))
    for both in ({}, {"step": 1, "samples": [0]}):
        with pytest.raises(FoundryError, match="step: give it or samples"):
            ReplaySettings(str(run), **both)


def shown(capsys):
    return re.findall(r"^sample (\d+)", capsys.readouterr().out, re.MULTILINE)
