"""The dummy step reads real samples at full size, draws random numbers, and leaves nothing behind."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from modeling_foundry.training import dummy_step
from modeling_foundry.training.dummy_step import stand_ins, take_dummy_step


def generators() -> list:
    numpy = np.random.get_state()
    return [random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()]


@pytest.mark.parametrize("more", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=str)
def test_nothing_stays_behind(build_trainer, more):
    trainer = build_trainer(**more)
    model = trainer.model.eval()
    before = generators()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    buffers = {name: (id(buffer), buffer.clone()) for name, buffer in model.named_buffers()}
    flags = [module.training for module in model.modules()]
    identities = [id(parameter) for parameter in model.parameters()]

    step = take_dummy_step(trainer)

    assert (step.num_sequences, step.num_tokens) == (4, 32)
    assert 4 < step.loss < 8  # of random weights over 320 ids: near ln 384
    assert generators() == before
    assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert identities == [id(parameter) for parameter in model.parameters()]
    for name, buffer in model.named_buffers():
        assert buffers[name][0] == id(buffer)
        assert torch.equal(buffers[name][1], buffer)
    assert flags == [module.training for module in model.modules()]
    assert not getattr(model, "is_gradient_checkpointing", False)
    assert trainer.optimizer is None
    assert trainer.guard.losses == []


def test_gradients_that_are_there_stay(build_trainer):
    trainer = build_trainer()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    take_dummy_step(trainer)
    assert all(bool((parameter.grad == 3.0).all()) for parameter in trainer.model.parameters())


def test_it_does_draw_random_numbers(build_trainer, monkeypatch):
    """Without the care that is taken, the generators would be elsewhere afterwards (dropout is on)."""
    trainer = build_trainer()
    monkeypatch.setattr(dummy_step, "generators_kept", lambda device: nullcontext())
    before = generators()
    take_dummy_step(trainer)
    assert generators() != before


def test_the_backward_pass_reaches_every_parameter(build_trainer, monkeypatch):
    trainer, made = build_trainer(), {}
    monkeypatch.setattr(dummy_step, "stand_ins", lambda *given: made.setdefault("tensors", stand_ins(*given)))
    take_dummy_step(trainer)
    gradients = [t.grad for t in made["tensors"].values() if isinstance(t, torch.nn.Parameter)]
    assert len(gradients) == len(list(trainer.model.parameters()))
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_stand_ins_share_memory_unless_the_back_end_stores_another_dtype(build_trainer):
    model = build_trainer().model
    same, bf16 = stand_ins(model, None), stand_ins(model, torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert same[name].data_ptr() == parameter.data_ptr()
        assert bf16[name].dtype == torch.bfloat16
    for name, buffer in model.named_buffers():
        assert same[name].data_ptr() != buffer.data_ptr()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_as_deepspeed_will_store_it(build_trainer, monkeypatch, dtype):
    """Recomputation in the backward pass reads the stand-ins too, else the dtypes would not fit."""
    trainer = build_trainer(gradient_checkpointing=True)
    monkeypatch.setattr(dummy_step, "stored_dtype", lambda *given: dtype)
    assert take_dummy_step(trainer).loss == pytest.approx(5.9, abs=1.0)
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_compiled_layers_are_not_compiled_a_second_time(build_trainer):
    trainer, graphs = build_trainer(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for layer in trainer.model.model.layers:
        layer.compile(backend=backend)
    take_dummy_step(trainer)
    compiled = len(graphs)
    inputs = dummy_step.first_micro_batch(trainer)
    trainer.model.train()(**inputs, use_cache=False).loss.backward()
    torch._dynamo.reset()
    assert compiled > 0
    assert len(graphs) == compiled


def test_training_is_bit_for_bit_what_it_is_without(build_trainer):
    plain, checked = build_trainer(), None
    plain.train()
    checked = build_trainer()
    take_dummy_step(checked)
    checked.train()
    ours, theirs = checked.model.state_dict(), plain.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for one, other in zip(checked.optimizer.state.values(), plain.optimizer.state.values(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    losses = [
        [line["loss"] for line in trainer.state.log_history if "loss" in line] for trainer in (plain, checked)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.slow
def test_compiled_layers_are_compiled_once_for_it_and_for_training(build_trainer):
    """A second compilation would double the time to the first step."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    trainer = build_trainer(compile_layers=True)
    take_dummy_step(trainer)
    assert counters["stats"]["unique_graphs"] == 1
    trainer.train()
    assert counters["stats"]["unique_graphs"] == 1
