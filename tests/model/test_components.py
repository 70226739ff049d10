"""Every combination of components builds, learns, saves, loads and generates, at the sizes asked for."""

import itertools

import pytest
import torch

from modeling_foundry import FoundryConfig, FoundryForCausalLM
from modeling_foundry.model.parameters import assert_built_as_requested, count_parameters

HEADS = {"MHA": 4, "GQA": 2, "MQA": 1}
COMBINATIONS = [
    dict(
        zip(
            (
                "normalization",
                "position_encoding",
                "ffn_type",
                "num_key_value_heads",
                "qk_norm",
                "bias",
                "tied",
            ),
            values,
            strict=True,
        )
    )
    for values in itertools.product(
        ("rmsnorm", "layernorm"),
        ("rope", "learned"),
        ("swiglu", "standard"),
        HEADS.values(),
        (True, False),
        (True, False),
        (True, False),
    )
]


def fields(combination):
    rest = dict(combination)
    bias, tied = rest.pop("bias"), rest.pop("tied")
    return {**rest, "attention_bias": bias, "mlp_bias": bias, "tie_word_embeddings": tied}


@pytest.mark.slow
def test_every_combination_is_built_as_requested(tiny):
    for combination in COMBINATIONS:
        config = tiny(**fields(combination))
        with torch.device("meta"):
            model = FoundryForCausalLM(config)
        model.tie_weights()
        assert_built_as_requested(model, config)


# Every pair of choices appears together in these, at a fraction of the 192.
PAIRWISE = COMBINATIONS[::13] + COMBINATIONS[5::29]


@pytest.mark.parametrize("combination", PAIRWISE, ids=lambda c: "-".join(map(str, c.values())))
def test_learns_saves_loads_and_generates(tiny, tokens, tmp_path, combination):
    torch.manual_seed(0)
    model = FoundryForCausalLM(tiny(**fields(combination))).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
    model.eval().save_pretrained(tmp_path)
    loaded = FoundryForCausalLM.from_pretrained(tmp_path).eval()
    assert_built_as_requested(loaded, model.config)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    prompt = {"input_ids": tokens[:, :4], "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    cached, uncached = (loaded.generate(**prompt, use_cache=use_cache) for use_cache in (True, False))
    assert cached.shape == (3, 10)
    assert torch.equal(cached, uncached)


def test_pairwise_sample_covers_every_pair_of_choices():
    names = list(COMBINATIONS[0])
    for a, b in itertools.combinations(names, 2):
        wanted = {(c[a], c[b]) for c in COMBINATIONS}
        assert {(c[a], c[b]) for c in PAIRWISE} == wanted, (a, b)


def test_flagship_has_exactly_its_parameters():
    config = FoundryConfig()
    with torch.device("meta"):
        model = FoundryForCausalLM(config)
    assert model.num_parameters() == count_parameters(config) == 1_830_395_904
    assert_built_as_requested(model, config)


def test_llama_7b_shape_has_exactly_its_parameters():
    config = FoundryConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        qk_norm=False,
        rope_theta=10_000.0,
        norm_eps=1e-5,
    )
    with torch.device("meta"):
        model = FoundryForCausalLM(config)
    assert model.num_parameters() == count_parameters(config) == 6_738_415_616


MISMATCHES = {
    "key-value heads": ({"num_key_value_heads": 4}, "k_proj.weight"),
    "ffn width": ({"intermediate_size": 64}, "mlp.gate_proj.weight"),
    "vocabulary": ({"vocab_size": 98}, "embed_tokens.weight"),
    "layers": ({"num_hidden_layers": 3}, "model.layers.2"),
    "norm": ({"normalization": "layernorm"}, "norm.bias"),
    "qk norm": ({"qk_norm": False}, "_norm.weight"),
    "ffn": ({"ffn_type": "standard"}, "gate_proj"),
    "bias": ({"attention_bias": True}, "_proj.bias"),
    "positions": ({"position_encoding": "learned"}, "embed_positions.weight"),
    "tie": ({"tie_word_embeddings": True}, "tied=False"),
}


@pytest.mark.parametrize(("asked", "named"), MISMATCHES.values(), ids=MISMATCHES)
def test_a_model_that_is_not_what_was_asked_for_is_named(tiny, build, asked, named):
    with pytest.raises(ValueError, match="model: ") as refusal:
        assert_built_as_requested(build(), tiny(**asked))
    assert named in str(refusal.value)


def test_the_head_keeps_its_class_and_tie_when_the_vocabulary_grows(build, tokens):
    for tied in (True, False):
        model = build(tie_word_embeddings=tied)
        before = model(tokens).logits
        model.resize_token_embeddings(120)
        assert_built_as_requested(model, model.config)
        assert type(model.lm_head).__name__ == "FoundryHead"
        assert torch.equal(model(tokens).logits[..., :97], before)
        assert model.train()(tokens, labels=tokens).logits is None


def test_positions_beyond_a_learned_table_are_refused(build):
    model = build(position_encoding="learned", max_position_embeddings=16)
    assert model(torch.zeros(1, 16, dtype=torch.long)).logits.shape == (1, 16, 97)
    with pytest.raises(ValueError, match="position 16 is beyond the 16 learned positions"):
        model(torch.zeros(1, 17, dtype=torch.long))
    with pytest.raises(ValueError, match="position 16 is beyond"):
        model.generate(torch.ones(1, 12, dtype=torch.long), max_new_tokens=10, do_sample=False)
    with pytest.raises(ValueError, match="position 40 is beyond"):
        model(torch.zeros(1, 1, dtype=torch.long), position_ids=torch.tensor([[40]]))


def test_learned_positions_matter(build, tokens):
    model = build(position_encoding="learned")
    reversed_positions = torch.arange(17).flip(0)[None]
    hidden, _ = model.model.encode_positions(model.model.embed_tokens(tokens), reversed_positions)
    expected = model.model.embed_tokens(tokens) + model.model.embed_positions.weight[:17].flip(0)
    assert torch.equal(hidden, expected)


def test_rope_depends_on_distance_only(build, tokens):
    model = build()
    shifted = torch.arange(17)[None] + 5
    torch.testing.assert_close(
        model(tokens, position_ids=shifted).logits, model(tokens).logits, rtol=1e-4, atol=1e-4
    )


def test_dropout_acts_in_training_only(build, tokens):
    model = build(attention_dropout=0.5)
    assert torch.equal(model(tokens).logits, model(tokens).logits)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
