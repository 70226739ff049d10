"""FoundryConfig refuses what the model cannot honour and survives saving."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.model.configuration_foundry import (
    ATTENTION_BACKENDS,
    FOREIGN_FIELDS,
    FoundryConfig,
    attention_implementation,
)

REFUSED = {
    "heads": ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads=4"),
    "odd head_dim": ({"head_dim": 9}, "head_dim=9"),
    "uneven width": ({"head_dim": None, "hidden_size": 33}, "hidden_size=33"),
    "learned with rope": (
        {"position_encoding": "learned", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "rope_parameters",
    ),
    "learned with theta": ({"position_encoding": "learned", "rope_theta": 1e4}, "rope_theta"),
    "swiglu with gelu": ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
    "unknown act": ({"ffn_type": "standard", "hidden_act": "swish9"}, "hidden_act='swish9'"),
    "unknown norm": ({"normalization": "batchnorm"}, "rmsnorm, layernorm"),
    "unknown position": ({"position_encoding": "alibi"}, "rope, learned"),
    "unknown ffn": ({"ffn_type": "moe"}, "swiglu, standard"),
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers=0"),
    "text for a number": ({"hidden_size": "32"}, "hidden_size='32'"),
    "fraction": ({"intermediate_size": 1.5}, "intermediate_size=1.5"),
    "bool for a number": ({"num_hidden_layers": True}, "num_hidden_layers=True"),
    "number for a flag": ({"qk_norm": 1}, "qk_norm=1"),
    "dropout of one": ({"attention_dropout": 1.0}, "attention_dropout=1.0"),
    "negative z-loss": ({"z_loss_weight": -1e-4}, "z_loss_weight"),
    "theta": ({"rope_theta": -1.0}, "rope_theta=-1.0"),
    "rope type": ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type='spiral'"),
    "yarn without factor": ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "factor"),
    "partial rotation": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor",
    ),
    "separator outside": ({"eos_token_id": 97}, "eos_token_id=97"),
    "one separator of two outside": ({"eos_token_id": [1, 97]}, "eos_token_id=97"),
    "sliding window": ({"sliding_window": 16}, "sliding_window"),
    "misspelt": ({"normalisation": "layernorm"}, "use normalization"),
    "misspelt flag": ({"qk_norms": False}, "use qk_norm"),
    "another's word": ({"num_kv_heads": 2}, "num_key_value_heads"),
}


@pytest.mark.parametrize(("fields", "named"), REFUSED.values(), ids=REFUSED)
def test_refuses_by_name_in_one_line(tiny, fields, named):
    with pytest.raises(ValueError) as refusal:
        tiny(**fields)
    message = str(refusal.value)
    assert named in message
    assert "\n" not in message


@pytest.mark.parametrize("name", FOREIGN_FIELDS)
def test_words_of_other_configurations_are_refused(tiny, name):
    with pytest.raises(ValueError, match=f"unknown field '{name}'"):
        tiny(**{name: 3})


def test_a_change_after_construction_is_refused_when_the_model_is_built(tiny):
    from modeling_foundry import FoundryForCausalLM

    config = tiny()
    config.num_key_value_heads = 3
    with pytest.raises(ValueError, match="num_key_value_heads=3"):
        FoundryForCausalLM(config)


def test_words_of_transformers_pass(tiny):
    config = tiny(
        num_labels=3, torch_dtype="bfloat16", attn_implementation="eager", sep_token_id=4, name_or_path="here"
    )
    assert (config.num_labels, config._attn_implementation, config.sep_token_id) == (3, "eager", 4)


def test_defaults_are_the_flagship():
    config = FoundryConfig()
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1_000_000.0}
    assert (config.hidden_act, config.num_key_value_heads, config.head_dim) == ("silu", 8, 128)
    assert config.rms_norm_eps == config.norm_eps == 1e-6


def test_none_means_what_the_docstring_says(tiny):
    config = tiny(num_key_value_heads=None, head_dim=None, ffn_type="standard")
    assert (config.num_key_value_heads, config.head_dim, config.hidden_act) == (4, 8, "gelu")


def test_legacy_rope_theta_is_folded_in(tiny):
    assert tiny(rope_theta=10_000.0).rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}


def test_the_callers_rope_dictionary_is_not_changed(tiny):
    rope = {"rope_theta": 5e5}
    tiny(rope_parameters=rope)
    assert rope == {"rope_theta": 5e5}


@given(
    heads=st.sampled_from([(4, 4), (4, 2), (4, 1), (6, 3)]),
    normalization=st.sampled_from(["rmsnorm", "layernorm"]),
    position_encoding=st.sampled_from(["rope", "learned"]),
    ffn_type=st.sampled_from(["swiglu", "standard"]),
    flags=st.tuples(*[st.booleans()] * 4),
    theta=st.sampled_from([None, 1e4, 5e5]),
    tokens=st.sampled_from([None, 0, [1, 2]]),
)
@settings(max_examples=25)
def test_round_trip_through_json(
    tmp_path_factory, heads, normalization, position_encoding, ffn_type, flags, theta, tokens
):
    fields = {
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "normalization": normalization,
        "position_encoding": position_encoding,
        "ffn_type": ffn_type,
        "eos_token_id": tokens,
        **dict(zip(("qk_norm", "attention_bias", "mlp_bias", "tie_word_embeddings"), flags, strict=True)),
    }
    if theta is not None and position_encoding == "rope":
        fields["rope_theta"] = theta
    config = FoundryConfig(**fields)
    folder = tmp_path_factory.mktemp("config")
    config.save_pretrained(folder)
    assert FoundryConfig.from_pretrained(folder).to_dict() == config.to_dict()
    saved = json.loads((folder / "config.json").read_text())
    assert saved["model_type"] == "foundry"
    assert saved["auto_map"]["AutoModelForCausalLM"] == "modeling_foundry.FoundryForCausalLM"


def test_attention_backends_know_the_earlier_systems_word():
    assert attention_implementation("flash_attn_2") == "flash_attention_2"
    assert all(attention_implementation(backend) for backend in ATTENTION_BACKENDS)
    with pytest.raises(ValueError, match="attention_backend='manual'"):
        attention_implementation("manual")
