"""Tiny models and probes shared by the model's tests."""

import pytest
import torch

from modeling_foundry import FoundryConfig, FoundryForCausalLM

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.fixture
def tiny():
    """A configuration with two layers; keyword arguments override the defaults."""
    return lambda **overrides: FoundryConfig(**{**TINY, **overrides})


@pytest.fixture
def build(tiny):
    """A model in evaluation mode whose norms and biases are not at their trivial start."""

    def build_model(seed: int = 0, **overrides) -> FoundryForCausalLM:
        torch.manual_seed(seed)
        model = FoundryForCausalLM(tiny(**overrides))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    return build_model


@pytest.fixture
def tokens():
    """Three rows of 17 token ids."""
    return torch.randint(3, 97, (3, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def padding():
    """Attention mask (3, 17): one full row, one left-padded by 5, one right-padded by 4."""
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[1, :5] = 0
    mask[2, -4:] = 0
    return mask
