"""The batches of a step are fetched while the device works on the step before; nothing else changes."""

from types import SimpleNamespace

import pytest
import torch

from modeling_foundry.pretraining.pipeline import PretrainArguments
from modeling_foundry.training.read_ahead import ReadAhead
from tests.training.tiny_training import logged, tiny_trainer

MICRO_BATCH, ACCUMULATION, STEPS = 2, 3, 4


@pytest.fixture
def arguments(tmp_path):
    return PretrainArguments(
        output_dir=str(tmp_path), max_steps=STEPS, per_device_train_batch_size=MICRO_BATCH, use_cpu=True,
        gradient_accumulation_steps=ACCUMULATION, report_to="none", bf16=False,
    )  # fmt: skip


class Recorded(list):
    """Samples that write down when they are read."""

    def __init__(self, samples, events):
        super().__init__(samples)
        self.events = events

    def __getitem__(self, index):
        self.events.append(index)
        return super().__getitem__(index)


def test_each_backward_pass_comes_after_one_batch_of_the_next_step(arguments, monkeypatch):
    trainer, events = tiny_trainer(arguments), []
    trainer.train_dataset = Recorded(trainer.train_dataset, events)
    backward = torch.Tensor.backward

    def recorded(*given, **named):
        events.append("backward")
        backward(*given, **named)

    monkeypatch.setattr(torch.Tensor, "backward", recorded)
    trainer.train()
    passes = [place for place, event in enumerate(events) if event == "backward"]
    for number, place in enumerate(passes):
        wanted = min(ACCUMULATION + number + 1, STEPS * ACCUMULATION)
        assert set(range(wanted * MICRO_BATCH)) <= set(events[:place])


def test_losses_and_weights_are_those_of_a_run_that_does_not_read_ahead(arguments, monkeypatch):
    ahead = tiny_trainer(arguments)
    losses = logged(ahead, "loss")
    monkeypatch.setattr(ReadAhead, "one_more", lambda self: None)
    plain = tiny_trainer(arguments)
    assert logged(plain, "loss") == losses
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, ahead.model.state_dict()[name])


def test_what_was_read_ahead_of_another_iterator_is_forgotten(arguments):
    trainer = tiny_trainer(arguments)
    first, again = iter("abcdef"), iter("uvwxyz")
    assert trainer.get_batch_samples(first, 2, None)[0] == ["a", "b"]
    trainer.read_ahead.one_more()
    trainer.read_ahead.one_more()
    assert trainer.get_batch_samples(first, 2, None)[0] == ["c", "d"]
    trainer.read_ahead.one_more()
    assert trainer.get_batch_samples(again, 2, None)[0] == ["u", "v"]


def test_the_end_of_an_epoch_is_met_once(arguments):
    trainer = tiny_trainer(arguments)
    batches = iter("abc")
    assert trainer.get_batch_samples(batches, 2, None)[0] == ["a", "b"]
    trainer.read_ahead.one_more()
    trainer.read_ahead.one_more()
    assert trainer.get_batch_samples(batches, 1, None)[0] == ["c"]
    trainer.read_ahead.one_more()
    assert trainer.get_batch_samples(batches, 1, None)[0] == []


@pytest.mark.parametrize(
    ("device", "non_blocking", "pinned", "is_timed"),
    [
        ("cpu", False, False, True),
        ("cuda", True, True, True),
        ("cuda", False, True, False),
        ("cuda", True, False, False),
    ],
)
def test_a_wait_for_the_gpu_is_not_taken_for_a_wait_for_data(device, non_blocking, pinned, is_timed):
    asked = []
    trainer = SimpleNamespace(
        run_log=None, accelerator=SimpleNamespace(non_blocking=non_blocking),
        args=SimpleNamespace(device=SimpleNamespace(type=device), dataloader_pin_memory=pinned),
    )  # fmt: skip
    ahead = ReadAhead(trainer)
    assert list(ahead.batches(iter("ab"))) == ["a", "b"]  # no run log yet
    trainer.run_log = SimpleNamespace(timed=lambda batches, is_busy: asked.append(is_busy()) or batches)
    assert list(ahead.batches(iter("ab"))) == ["a", "b"]
    assert asked == ([False] if is_timed else [])
