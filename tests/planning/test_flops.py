"""FLOPs equal what PyTorch's FlopCounterMode counts while the real model runs, to the last one.

Eager attention only: on a CPU the counter sees no FLOPs in scaled_dot_product_attention.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.planning import architecture_of, count_flops, training_flops_per_token
from modeling_foundry.planning.formulas.flops import visible_pairs_twice
from tests.planning.conftest import FAMILIES, REAL, SMALL, build_model


def counted_flops(values: dict, batch: int, sequence: int, train: bool) -> int:
    """FLOPs of one pass of the real model, rotary tables left out (they are no part of any convention)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    model = build_model(values)
    model.train(train)
    tokens = torch.randint(0, values["vocab_size"], (batch, sequence))
    counter = FlopCounterMode(display=False)
    with counter:
        if train:
            model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        else:
            with torch.no_grad():
                model(input_ids=tokens, use_cache=False)
    counts = counter.get_flop_counts()
    rotary = sum(sum(ops.values()) for name, ops in counts.items() if name.endswith("rotary_emb"))
    return counter.get_total_flops() - rotary


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("train", [False, True], ids=["forward", "training"])
def test_equal_to_the_counter_for_every_family(family, train):
    batch, sequence = 2, 24
    count = count_flops(architecture_of(SMALL[family]), sequence)
    factor = 3 if train else 1
    assert counted_flops(SMALL[family], batch, sequence, train) == factor * batch * count.forward_per_sequence


mixes = st.fixed_dictionaries(
    {
        "model_type": st.just("foundry"),
        "vocab_size": st.integers(8, 200),
        "hidden_size": st.integers(1, 6).map(lambda n: 8 * n),
        "intermediate_size": st.integers(1, 80),
        "num_hidden_layers": st.integers(1, 3),
        "num_key_value_heads": st.sampled_from([1, 2, 3]),
        "head_dim": st.sampled_from([2, 4, 10]),
        "max_position_embeddings": st.just(32),
        "normalization": st.sampled_from(["rmsnorm", "layernorm"]),
        "position_encoding": st.sampled_from(["rope", "learned"]),
        "ffn_type": st.sampled_from(["swiglu", "standard"]),
        "qk_norm": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "loss_chunk_tokens": st.sampled_from([1, 7, 8192]),
    }
).flatmap(
    lambda values: st.sampled_from([1, 2, 4]).map(
        lambda groups: values | {"num_attention_heads": groups * values["num_key_value_heads"]}
    )
)


@pytest.mark.slow
@settings(max_examples=40)
@given(values=mixes, batch=st.integers(1, 3), sequence=st.integers(1, 32))
def test_equal_to_the_counter_for_any_mix_of_components(values, batch, sequence):
    count = count_flops(architecture_of(values), sequence)
    assert counted_flops(values, batch, sequence, train=True) == 3 * batch * count.forward_per_sequence
    parameters = sum(p.numel() for p in build_model(values, device="meta").parameters())
    from modeling_foundry.planning import count_parameters

    assert count_parameters(architecture_of(values)).total == parameters


def test_flagship_in_both_conventions():
    flagship = architecture_of(REAL["foundry"])
    assert training_flops_per_token(flagship, 2048, "full") == 10_322_706_432  # 10.32 GF
    assert training_flops_per_token(flagship, 2048, "causal") == 9_718_726_656  # 9.72 GF


def test_is_six_times_the_matmul_weights_and_attention():
    flagship = architecture_of(REAL["foundry"])
    layer = 2048 * (2 * 16 + 2 * 8) * 128 + 3 * 2048 * 6144
    weights = 24 * layer + 151936 * 2048
    assert training_flops_per_token(flagship, 2048) == 6 * weights + 12 * 24 * 16 * 128 * 2048


@pytest.mark.parametrize(
    ("family", "sequence", "training_gf"),
    [("llama", 2048, 42.8637), ("deepseek_v3", 2048, 250.450), ("deepseek_v3", 4096, 281.152)],
)
def test_known_models(family, sequence, training_gf):
    flops = training_flops_per_token(architecture_of(REAL[family]), sequence) / 1e9
    assert flops == pytest.approx(training_gf, abs=1e-3)


@settings(max_examples=200)
@given(sequence=st.integers(1, 300), window=st.none() | st.integers(1, 400))
def test_causal_pairs_are_the_area_under_the_diagonal(sequence, window):
    """Against a count of pairs, position by position, with the diagonal counted half."""
    twice = 0
    for query in range(sequence):
        width = min(window or sequence, sequence)
        full_keys = min(query, width - 1)
        twice += 2 * full_keys + 1
    # A full window's far edge is another half-counted diagonal, cut off evenly.
    beyond = max(0, sequence - (window or sequence))
    assert visible_pairs_twice(sequence, window, "causal") == twice + beyond
    assert visible_pairs_twice(sequence, window, "full") == 2 * sequence**2


def test_attention_share_grows_with_the_sequence():
    flagship = architecture_of(REAL["foundry"])
    shares = [count_flops(flagship, 2**power).attention_share for power in range(6, 18)]
    assert shares == sorted(shares)
    assert count_flops(flagship, 2048).attention_share == pytest.approx(0.117, abs=5e-4)


def test_a_window_bounds_the_causal_cost_only():
    windowed = architecture_of(REAL["mistral"])
    free = architecture_of(REAL["mistral"] | {"sliding_window": None})
    assert training_flops_per_token(windowed, 32768, "causal") < training_flops_per_token(
        free, 32768, "causal"
    )
    assert training_flops_per_token(windowed, 32768) == training_flops_per_token(free, 32768)
    assert training_flops_per_token(windowed, 4096, "causal") == training_flops_per_token(
        free, 4096, "causal"
    )
