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


@pytest.mark.parametrize("extra", [{"attention_bias": True}, {"q_lora_rank": None}, {"n_shared_experts": 1}])
def test_variants_of_latent_attention(extra):
    values = SMALL["deepseek_v3"] | extra
    model = build_model(values, device="meta")
    assert count_parameters(architecture_of(values)).total == sum(p.numel() for p in model.parameters())
