"""With Qwen3's (or Llama's) components the model is Qwen3 (or Llama), to the last bit."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

from modeling_foundry.model.conversion import from_llama, from_qwen3, to_llama, to_qwen3

LLAMA = {"qk_norm": False, "norm_eps": 1e-5, "rope_theta": 10_000.0}
FAMILIES = {
    "qwen3": ({}, to_qwen3, from_qwen3),
    "qwen3 tied": ({"tie_word_embeddings": True}, to_qwen3, from_qwen3),
    "qwen3 biases, MQA": ({"attention_bias": True, "num_key_value_heads": 1}, to_qwen3, from_qwen3),
    "qwen3 yarn": (
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0}},
        to_qwen3,
        from_qwen3,
    ),
    "llama": (LLAMA, to_llama, from_llama),
    "llama biases, MHA": (
        {**LLAMA, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
        to_llama,
        from_llama,
    ),
    "llama tied": ({**LLAMA, "tie_word_embeddings": True}, to_llama, from_llama),
}


@pytest.fixture(params=FAMILIES, ids=str)
def pair(request, build):
    """A Foundry model and the stock model with its weights."""
    overrides, to_stock, _ = FAMILIES[request.param]
    model = build(**overrides)
    return model, to_stock(model).eval()


def run(model, **inputs):
    with torch.no_grad():
        return model(**inputs)


def assert_identical(pair, backend, *inputs):
    for model in pair:
        model.set_attn_implementation(backend)
    for given in inputs:
        ours, theirs = (run(model, **given).logits for model in pair)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_logits_are_identical(pair, tokens, padding, backend):
    assert_identical(pair, backend, {"input_ids": tokens}, {"input_ids": tokens, "attention_mask": padding})


@pytest.mark.slow
def test_flex_attention_is_identical(build, tokens, padding):
    model = build()
    pair = (model, to_qwen3(model))
    assert_identical(pair, "flex_attention", {"input_ids": tokens, "attention_mask": padding})


def test_left_padding_with_positions_is_identical(pair, tokens, padding):
    foundry, stock = pair
    padding = padding[:2]
    positions = (padding.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": tokens[:2], "attention_mask": padding, "position_ids": positions}
    assert torch.equal(run(foundry, **inputs).logits, run(stock, **inputs).logits)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_prefill_and_decoding_are_identical(pair, tokens, kind):
    logits = []
    for model in pair:
        cache = (
            DynamicCache(config=model.config)
            if kind == "dynamic"
            else StaticCache(config=model.config, max_cache_len=24)
        )
        outputs = [run(model, input_ids=tokens[:, :9], past_key_values=cache, use_cache=True).logits]
        for i in range(9, 17):
            outputs.append(run(model, input_ids=tokens[:, i : i + 1], past_key_values=cache).logits)
        logits.append(torch.cat(outputs, dim=1))
    assert torch.equal(*logits)
    whole = run(pair[0], input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(logits[0], whole, rtol=1e-4, atol=1e-4)


def test_packed_rows_are_identical(pair, tokens):
    foundry, stock = pair
    positions = torch.cat([torch.arange(6), torch.arange(11)]).expand(3, -1)
    inputs = {"input_ids": tokens, "position_ids": positions}
    expected = run(stock, **inputs, use_cache=False).logits
    assert torch.equal(run(foundry, **inputs).logits, expected)


def test_hidden_states_and_attentions_are_identical(pair, tokens):
    wanted = {"input_ids": tokens, "output_hidden_states": True, "output_attentions": True}
    for model in pair:
        model.set_attn_implementation("eager")
    ours, theirs = (run(model, **wanted) for model in pair)
    assert len(ours.hidden_states) == 3
    for name in ("hidden_states", "attentions"):
        assert all(torch.equal(a, b) for a, b in zip(ours[name], theirs[name], strict=True))


def test_bf16_agrees_within_its_precision(pair, tokens):
    foundry, stock = (copy.deepcopy(model).to(torch.bfloat16) for model in pair)
    # Ours stay fp32 through any cast; the stock ones do only through from_pretrained(dtype=…).
    assert foundry.model.rotary_emb.inv_freq.dtype == torch.float32
    stock.model.rotary_emb.inv_freq = pair[1].model.rotary_emb.inv_freq
    exact = run(pair[0], input_ids=tokens).logits
    half = run(foundry, input_ids=tokens).logits
    assert torch.equal(half, run(stock, input_ids=tokens).logits)
    assert (half.float() - exact).norm() / exact.norm() < 0.05


def test_loss_and_gradients_agree(pair, tokens):
    foundry, stock = (model.train() for model in pair)
    labels = tokens.clone()
    labels[0, :7] = -100
    losses = []
    for model in (foundry, stock):
        model.zero_grad()
        loss = model(input_ids=tokens, labels=labels, num_items_in_batch=torch.tensor(41)).loss
        loss.backward()
        losses.append(loss)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    expected = dict(stock.named_parameters())
    for name, parameter in foundry.named_parameters():
        error = (parameter.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 1e-6, name


def test_greedy_generation_is_identical(pair, tokens):
    prompt = {"input_ids": tokens[:, :6], "max_new_tokens": 8, "do_sample": False}
    ours, theirs = (model.generate(**prompt) for model in pair)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", FAMILIES)
def test_state_dict_survives_the_way_there_and_back(build, name):
    overrides, to_stock, from_stock = FAMILIES[name]
    model = build(**overrides)
    back = from_stock(to_stock(model))
    expected = model.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in back.state_dict().items())
    ours, theirs = model.config.to_dict(), back.config.to_dict()
    assert ours | {"dtype": None, "architectures": None} == theirs | {"dtype": None, "architectures": None}
