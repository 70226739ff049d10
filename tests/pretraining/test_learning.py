"""What a step of pretraining computes: weight decay, z-loss in the log, activation checkpointing, accumulation."""

import pytest
import torch
from transformers import Trainer

from modeling_foundry.pretraining.token_budget import resolve_plan
from tests.pretraining.test_token_budget import arguments
from tests.training.tiny_training import SEQUENCE_LENGTH, logged, tiny_model, tiny_trainer

VARIANTS = {
    "qwen3": {},
    "llama": {"qk_norm": False, "tie_word_embeddings": True},
    "gpt2": {
        "normalization": "layernorm", "position_encoding": "learned", "ffn_type": "standard", "hidden_act": "gelu",
        "attention_bias": True, "mlp_bias": True,
    },
}  # fmt: skip


def trainer_of(tmp_path, *words, **model):
    parsed = arguments(*words, tmp_path=tmp_path)
    return tiny_trainer(resolve_plan(parsed, SEQUENCE_LENGTH).arguments, **model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_adamw_decays_every_matrix_and_nothing_else(tmp_path, variant):
    """0.9, 0.95, 0.1; matrices are all with two dimensions, embeddings and head too; norms and biases are not."""
    trainer = trainer_of(tmp_path, "--max_steps=1", **VARIANTS[variant])
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.AdamW
    assert all(group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(trainer.model.named_parameters())
    assert {name: decay[id(p)] for name, p in named.items()} == {
        name: 0.1 if p.ndim >= 2 else 0.0 for name, p in named.items()
    }
    before = {name: p.detach().clone() for name, p in named.items()}
    for p in named.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in named.items():
        expected = before[name] * (1 - 0.01 * 0.1) if p.ndim >= 2 else before[name]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=0, msg=name)


def test_the_loss_is_logged_without_the_z_loss_which_stands_beside_it(tmp_path):
    words = ["--max_steps=2", "--gradient_accumulation_steps=3"]
    plain = trainer_of(tmp_path / "plain", *words)
    with_z = trainer_of(tmp_path / "z", *words, z_loss_weight=0.05)
    batch = torch.stack([with_z.train_dataset[index]["input_ids"] for index in range(12)])
    logits = tiny_model().train()(batch, labels=batch, skip_logits=False).logits[:, :-1]
    expected = 0.05 * logits.logsumexp(-1).square().mean().item()
    first, second = logged(plain, "loss"), logged(with_z, "loss")
    z_losses = [line["z_loss"] for line in with_z.state.log_history if "z_loss" in line]
    assert not any("z_loss" in line for line in plain.state.log_history)
    assert second[0] == pytest.approx(first[0], rel=1e-6)  # the same weights still
    assert z_losses[0] == pytest.approx(expected, rel=1e-5)
    assert len(z_losses) == 2
    assert z_losses[1] < z_losses[0], "it is not learned"
    norms = [trainer.state.log_history[0]["grad_norm"] for trainer in (plain, with_z)]
    assert norms[0] != pytest.approx(norms[1], rel=1e-3), "it has no gradient"


def test_the_z_loss_of_several_steps_in_one_line_is_their_mean(tmp_path):
    words = ["--max_steps=4", "--learning_rate=0"]
    each = trainer_of(tmp_path / "each", *words, z_loss_weight=0.05)
    together = trainer_of(tmp_path / "together", *words, z_loss_weight=0.05)
    together.args.logging_steps = 2
    one, two = logged(each, "z_loss"), logged(together, "z_loss")
    assert two == pytest.approx([(one[0] + one[1]) / 2, (one[2] + one[3]) / 2], rel=1e-6)


def test_the_z_loss_is_taken_out_of_a_loss_that_trainer_scales_in_place(tmp_path, monkeypatch):
    """As it does by the number of ranks, in the model's own outputs."""
    words = ["--max_steps=1"]
    one = trainer_of(tmp_path / "one", *words, z_loss_weight=0.05)
    one.train()
    of_trainer = Trainer.compute_loss

    def scaled(*given, **more):
        answer = of_trainer(*given, **more)
        loss = answer[0] if isinstance(answer, tuple) else answer
        loss *= 2
        return answer

    monkeypatch.setattr(Trainer, "compute_loss", scaled)
    two = trainer_of(tmp_path / "two", *words, z_loss_weight=0.05)
    two.train()
    for name in ("loss", "z_loss"):
        assert two.state.log_history[0][name] == pytest.approx(2 * one.state.log_history[0][name], rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_activation_checkpointing_computes_the_same_twice_over(tmp_path, dropout):
    """Equal losses and gradient norms, bit for bit; the layers really run again in the backward pass."""
    seen = {}
    for key in ("false", "true"):
        trainer = trainer_of(
            tmp_path / key, "--max_steps=3", f"--gradient_checkpointing={key}", attention_dropout=dropout
        )
        calls = []
        trainer.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        losses = logged(trainer, "loss")
        norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
        weights = [p.detach().clone() for p in trainer.model.parameters()]
        seen[key] = losses, norms, weights, len(calls)
    assert seen["true"][:2] == seen["false"][:2]
    assert all(torch.equal(*pair) for pair in zip(seen["true"][2], seen["false"][2], strict=True))
    assert (seen["false"][3], seen["true"][3]) == (3, 6)


def test_a_global_batch_by_accumulation_is_the_batch_in_one(tmp_path):
    """256 tokens as 1 x 16 sequences and as 4 accumulated micro-batches of 4: equal losses and gradients."""
    words = ["--max_steps=3", "--global_batch_tokens=256"]
    whole = trainer_of(tmp_path / "whole", *words, "--per_device_train_batch_size=16")
    parts = trainer_of(tmp_path / "parts", *words)
    assert (whole.args.gradient_accumulation_steps, parts.args.gradient_accumulation_steps) == (1, 4)
    assert logged(parts, "loss") == pytest.approx(logged(whole, "loss"), rel=1e-5)
    norms = [
        [line["grad_norm"] for line in t.state.log_history if "grad_norm" in line] for t in (whole, parts)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
