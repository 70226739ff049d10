"""Muon's arithmetic against the definition and against torch's own optimizers."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.pretraining.muon import MuonAdamW, MuonFactory, orthogonalize
from modeling_foundry.settings import FoundryError


@settings(max_examples=30)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(0, 1000))
def test_result_is_nearly_orthogonal_with_the_same_singular_vectors(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    if s[-1] < 0.05 * s[0]:
        return  # five iterations lift only singular values that are not tiny
    in_that_basis = u.T @ orthogonalize(matrix) @ vh.T
    diagonal = in_that_basis.diagonal()
    assert torch.all((diagonal > 0.4) & (diagonal < 1.3))
    assert (in_that_basis - torch.diag(diagonal)).abs().max() < 1e-3


def test_vectors_take_the_same_steps_as_torch_adamw():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Parameter(torch.randn(7)), None
    theirs = torch.nn.Parameter(ours.detach().clone())
    groups = [{"params": [ours], "weight_decay": 0.1}]
    optimizer = MuonAdamW(groups, lr=0.01, betas=(0.9, 0.95))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    for _ in range(20):
        gradient = torch.randn(7)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_matrices_take_the_same_direction_as_torch_muon():
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(12, 8))
    theirs = torch.nn.Parameter(ours.detach().clone())
    optimizer = MuonAdamW([{"params": [ours], "use_muon": True}], lr=0.02)
    reference = torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(12, 8)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        reference.step()
    # torch iterates in bfloat16: the same steps to its precision
    torch.testing.assert_close(ours, theirs, atol=0.02 * 5 * 0.05, rtol=0)


def test_state_survives_a_checkpoint():
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))]

    def make():
        return MuonAdamW([{"params": weights[:1], "use_muon": True}, {"params": weights[1:]}], lr=0.1)

    first = make()
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    first.step()
    saved, before = copy.deepcopy(first.state_dict()), [weight.detach().clone() for weight in weights]
    first.step()
    after = [weight.detach().clone() for weight in weights]
    for weight, value in zip(weights, before, strict=True):
        weight.data.copy_(value)
    second = make()
    second.load_state_dict(saved)
    second.step()
    assert all(torch.equal(weight, value) for weight, value in zip(weights, after, strict=True))


def test_only_matrices_inside_layers_go_to_muon():
    from modeling_foundry import FoundryConfig, FoundryForCausalLM

    config = FoundryConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32,
    )  # fmt: skip
    model = FoundryForCausalLM(config)
    optimizer = MuonFactory()(model, lr=0.01, muon_lr=0.02, weight_decay=0.1, betas=(0.9, 0.95))
    muon, matrices, vectors = optimizer.param_groups
    assert muon["use_muon"]
    assert muon["lr"] == 0.02
    assert len(muon["params"]) == 2 * 7
    assert {tuple(p.shape) for p in matrices["params"]} == {(64, 16)}
    assert vectors["weight_decay"] == 0.0
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_vector_in_a_muon_group_is_refused():
    with pytest.raises(FoundryError, match="takes matrices only"):
        MuonAdamW([{"params": [torch.nn.Parameter(torch.zeros(3))], "use_muon": True}])
