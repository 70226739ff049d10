"""Parameter counts equal the model transformers builds, and the totals its makers publish."""

import pytest

from modeling_foundry.planning import architecture_of, count_parameters, read_model
from tests.conftest import REPOSITORY
from tests.planning.conftest import FAMILIES, PUBLISHED_TOTALS, REAL, SMALL, build_model


@pytest.mark.parametrize("family", FAMILIES)
def test_total_equals_the_meta_device_model_at_full_size(family):
    count = count_parameters(architecture_of(REAL[family]))
    model = build_model(REAL[family], device="meta")
    assert count.total == sum(parameter.numel() for parameter in model.parameters())
    assert count.total == PUBLISHED_TOTALS[family]
    biases = sum(b.numel() for name, b in model.named_buffers() if name.endswith("e_score_correction_bias"))
    assert count.selection_biases == biases


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_components_equal_the_modules_of_a_small_model(family, tied):
    values = SMALL[family] | {"tie_word_embeddings": tied}
    count = count_parameters(architecture_of(values))
    by_component = dict.fromkeys(count.components, 0)
    for name, parameter in build_model(values, device="meta").named_parameters():
        by_component[component_of(name)] += parameter.numel()
    assert count.components == by_component


def component_of(name: str) -> str:
    """Which component of the planner a parameter of any family belongs to."""
    rules = (
        ("lm_head", "output head"),
        ("wpe", "position embedding"),
        ("embed_positions", "position embedding"),
        ("wte", "token embedding"),
        ("embed_tokens", "token embedding"),
        ("norm", "norms"),
        ("ln_", "norms"),
        ("shared_experts", "shared experts"),
        ("experts", "routed experts"),
        ("gate.weight", "router"),
        ("attn", "attention"),
        ("mlp", "feed-forward"),
    )
    return next(component for part, component in rules if part in name)


@pytest.mark.parametrize(
    ("values", "total"),
    [
        (REAL["llama"] | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
         "num_attention_heads": 64, "num_key_value_heads": 8}, 68_976_648_192),  # Llama 2 70B
        (REAL["llama"] | {"vocab_size": 128256, "intermediate_size": 14336, "num_key_value_heads": 8,
         "torch_dtype": "bfloat16", "rope_scaling": {"factor": 8.0}}, 8_030_261_248),  # Llama 3.1 8B
        (REAL["llama"] | {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
         "num_hidden_layers": 16, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True},
         1_235_814_400),  # Llama 3.2 1B
        (REAL["mistral"] | {"vocab_size": 131072, "hidden_size": 5120, "num_hidden_layers": 40, "head_dim": 128,
         "sliding_window": None}, 12_247_782_400),  # Mistral Nemo
        (REAL["mixtral"] | {"vocab_size": 32768, "hidden_size": 6144, "intermediate_size": 16384,
         "num_hidden_layers": 56, "num_attention_heads": 48}, 140_630_071_296),  # Mixtral 8x22B
        (REAL["qwen2"] | {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
         "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
         "use_sliding_window": False, "sliding_window": 131072}, 7_615_616_512),  # Qwen2.5 7B
        (REAL["qwen3"] | {"hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
         "num_attention_heads": 64, "tie_word_embeddings": False}, 32_762_123_264),  # Qwen3 32B
        (REAL["qwen3_moe"] | {"hidden_size": 4096, "moe_intermediate_size": 1536, "num_hidden_layers": 94,
         "num_attention_heads": 64}, 235_093_634_560),  # Qwen3 235B-A22B
        (REAL["gemma2"] | {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42,
         "num_attention_heads": 16, "num_key_value_heads": 8}, 9_241_705_984),  # Gemma 2 9B
        (REAL["gpt2"] | {"n_embd": 1600, "n_layer": 48, "n_head": 25}, 1_557_611_200),  # GPT-2 XL
        (REAL["deepseek_v3"] | {"vocab_size": 163840, "hidden_size": 2048, "intermediate_size": 11264,
         "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
         "n_shared_experts": 2, "n_routed_experts": 64, "q_lora_rank": None, "num_experts_per_tok": 6,
         "first_k_dense_replace": 1}, 15_960_108_544),  # Moonlight 16B-A3B, less 1,664 routing biases
    ],
)  # fmt: skip
def test_published_sizes_of_other_members(values, total):
    assert count_parameters(architecture_of(values)).total == total


def test_deepseek_v3_active_parameters():
    count = count_parameters(architecture_of(REAL["deepseek_v3"]))
    assert count.selection_biases == 14_848
    assert count.active == 37_552_282_624  # 37.55B
    assert count.active - count.embedding == 36_625_603_584
    # Its README_WEIGHTS: 11.5B of the prediction module's own, 0.9B + 0.9B shared with the model.
    assert 11.5e9 < count.prediction_layers < 11.7e9


def test_prediction_layers_are_apart_from_the_total():
    values = SMALL["deepseek_v3"]
    with_one = count_parameters(architecture_of(values | {"num_nextn_predict_layers": 1}))
    without = count_parameters(architecture_of(values))
    assert with_one.total == without.total
    assert without.prediction_layers == 0
    hidden = values["hidden_size"]
    block = count_parameters(architecture_of(values | {"num_hidden_layers": 4})).total - without.total
    assert with_one.prediction_layers == block + 2 * hidden**2 + 3 * hidden


@pytest.mark.parametrize(
    ("family", "active"),
    [("mixtral", 12_879_925_248), ("qwen3_moe", 3_353_032_704)],  # 12.9B and 3.3B, as their makers say
)
def test_active_parameters_of_other_experts(family, active):
    assert count_parameters(architecture_of(REAL[family])).active == active


def test_a_dense_model_is_all_active():
    count = count_parameters(architecture_of(REAL["llama"]))
    assert count.active == count.total


@pytest.mark.parametrize(
    ("recipe", "total"),
    [("qwen3_1.8b", 1_830_395_904), ("llama2_1.36b", 1_294_159_104), ("custom", 123_587_328)],
)
def test_recipes_have_the_size_they_say(recipe, total):
    model = read_model(REPOSITORY / "recipes" / recipe / "pretrain.yaml")
    assert count_parameters(model.architecture).total == total


@pytest.mark.parametrize(
    "extra",
    [{"attention_bias": True}, {"q_lora_rank": None}, {"n_shared_experts": 1}, {"n_shared_experts": 0}],
)
def test_variants_of_latent_attention(extra):
    values = SMALL["deepseek_v3"] | extra
    model = build_model(values, device="meta")
    assert count_parameters(architecture_of(values)).total == sum(p.numel() for p in model.parameters())
