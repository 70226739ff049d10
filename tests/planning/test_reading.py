"""Reading models: JSON, JSONC and recipes; detection by content; every refusal is one clear line."""

import dataclasses
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.planning import PlanError, architecture_of, count_parameters, read_model
from modeling_foundry.planning.models.families import FAMILIES as KNOWN
from modeling_foundry.planning.models.fields import read_mapping
from tests.conftest import REPOSITORY
from tests.planning.conftest import FAMILIES, REAL, SMALL, build_model, transformers_config

RECIPE = """
# a model
hidden_size: 64
intermediate_size: 128
num_hidden_layers: 2
num_attention_heads: 4
vocab_size: 1000
sequence_length: 32
per_device_train_batch_size: 4
max_steps: 1e3
"""


def check_line(error: PlanError) -> str:
    """One printable line of a sensible length."""
    message = str(error)
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 600
    return message


def refusal(path) -> str:
    with pytest.raises(PlanError) as error:
        read_model(path)
    return check_line(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_s_name_does_not_matter(family, write_config):
    path = write_config(REAL[family], name="our_moe_gpt2_deepseek.txt")
    assert read_model(path).architecture.family == family


@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_the_library_saved_is_read_the_same(family, tmp_path):
    transformers_config(SMALL[family]).save_pretrained(tmp_path)
    saved = read_model(tmp_path)  # the folder, as people have it
    total = count_parameters(saved.architecture).total
    assert total == count_parameters(architecture_of(SMALL[family])).total


@pytest.mark.parametrize(
    "architectures", [None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"]], ids=lambda names: str(names)
)
def test_the_class_of_the_family_or_none_is_read(architectures):
    assert architecture_of(REAL["llama"] | {"architectures": architectures}).family == "llama"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_class_alone_names_the_family(family):
    """A configuration that the library saved holds the class; without model_type it is still known."""
    values = {k: v for k, v in SMALL[family].items() if k != "model_type"}
    name = type(build_model(SMALL[family], device="meta")).__name__
    assert architecture_of(values | {"architectures": [name]}) == architecture_of(SMALL[family])
    assert architecture_of(SMALL[family] | {"architectures": [name]}) == architecture_of(SMALL[family])


@pytest.mark.parametrize("family", FAMILIES)
def test_class_defaults_are_the_library_s(family):
    """An empty configuration of each family: what is missing takes the class's default or is refused."""
    full = transformers_config({"model_type": family}).to_dict()
    sizes = {key: full[key] for key in SMALL[family] if key in full}
    optional = ("num_key_value_heads", "head_dim", "tie_word_embeddings", "sliding_window")
    required = {key: value for key, value in sizes.items() if key not in optional}
    required |= {key: full[key] for key in ("num_local_experts",) if key in full}  # its other name
    required["model_type"] = family
    with_all = architecture_of({**full, "model_type": family})
    assert dataclasses.replace(architecture_of(required), max_positions=0) == dataclasses.replace(
        with_all, max_positions=0
    )


@pytest.mark.parametrize("family", ["foundry", "llama", "qwen2", "qwen3"])
def test_null_key_value_heads_are_as_many_as_heads(family):
    """To the library a missing key is the class's default, null is plain multi-head attention."""
    values = SMALL[family] | {"num_key_value_heads": None}
    attention = architecture_of(values).last_block.attention
    assert attention.num_key_value_heads == transformers_config(values).num_key_value_heads == 4


def test_null_head_dim_is_the_width_over_the_heads():
    values = SMALL["foundry"] | {"head_dim": None, "hidden_size": 64}
    assert architecture_of(values).last_block.attention.head_dim == transformers_config(values).head_dim == 16


def test_jsonc_comments_are_read_and_strings_kept(write_config):
    text = json.dumps(REAL["llama"] | {"_name_or_path": "http://x//y /* no comment */"}, indent=1)
    text = "// first\n" + text.replace('"vocab_size"', '/* two\nlines */ "vocab_size"')
    assert count_parameters(read_model(write_config(text)).architecture).total == 6_738_415_616


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"model_type": "llama",}', "not valid JSON"),
        ('{"model_type": "llama" "vocab_size": 3}', ":1: not valid JSON"),
        ('{\n"model_type": "llama",\n"vocab_size": }', ":3: not valid JSON"),
        ('{"model_type": "llama", "model_type": "gpt2"}', "model_type: given twice"),
        ('{"model_type": "llama", "vocab_size": NaN}', "NaN is not a number"),
        ('{"model_type": "llama", "vocab_size": -Infinity}', "-Infinity is not a number"),
        ("[1, 2]", "expected a JSON object"),
        ("{}", "model_type: missing"),
        ('{"model_type": "bert"}', "'bert' is not an architecture this planner knows"),
        ('{"model_type": 7}', "'7' is not an architecture"),
        ('{"architectures": ["T5ForConditionalGeneration"]}', "not known"),
        ('{"architectures": "LlamaForCausalLM"}', "expected a list of words"),
        (
            '{"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}',
            "not LlamaForCausalLM",
        ),
        ('{"model_type": "gpt2", "architectures": ["GPT2LMHeadCustomModel"]}', "not GPT2LMHeadModel"),
        ('{"model_type": "mistral", "architectures": ["MistralModel"]}', "not MistralForCausalLM"),
        ('{"model_type": "qwen3_moe", "architectures": [3]}', "expected a list of words"),
        ("", "empty"),
        ("   \n", "empty"),
        ("just words", "expected `key: value` lines"),
        ("- a\n- b\n", "expected `key: value` lines"),
        ("a: [1, 2\n", "not valid YAML"),
        ("output_dir: x\n", "describes no model"),
        ("vocab_size: 2048\noutput_dir: x\n", "describes no model"),
        ("a: &a [1, 2]\nb: [*a, *a]\n", "uses an alias"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"model_type": "llama", "vocab_size": ' + "9" * 5000 + "}", "digits"),
    ],
)
def test_unreadable_files(text, words, write_config):
    assert words in refusal(write_config(text))


@pytest.mark.parametrize(
    "text",
    ['{"a":"' + '\\"' * 100_000, "{" + "/*" * 200_000, '"' * 200_001, "{" + '"a' * 100_001 + "\n"],
    ids=["escaped quotes", "openings", "quotes", "odd quotes"],
)
def test_a_hostile_file_is_refused_in_a_second(text, write_config):
    start = time.process_time()
    refusal(write_config(text))
    assert time.process_time() - start < 1


def test_a_comment_that_never_ends_is_named(write_config):
    text = json.dumps(REAL["llama"]) + "\n/* the rest"
    assert ":2: a comment begins here and never ends" in refusal(write_config(text))


def test_a_recipe_of_thousands_of_keys_is_refused_in_a_second(write_config):
    text = "".join(f"key_{number}: 1\n" for number in range(5_000)) + "hidden_size: 8\n"
    start = time.process_time()
    assert "larger than" in refusal(write_config(text, "pretrain.yaml"))
    assert time.process_time() - start < 1


def test_a_device_that_never_ends_is_refused():
    assert "larger than" in refusal("/dev/zero")


@pytest.mark.parametrize("name", ["two\nlines.json", "bell\a.json", "turned\u202e.json", "half\udcff.json"])
def test_the_name_of_a_file_cannot_break_the_line(name, write_config):
    refusal(write_config({"model_type": "llama"}, name))
    assert read_model(write_config(REAL["llama"], name)).source.isprintable()


def test_binary_and_missing_files(tmp_path):
    (tmp_path / "weights.bin").write_bytes(bytes(range(256)))
    assert "not UTF-8 text" in refusal(tmp_path / "weights.bin")
    assert "No such file" in refusal(tmp_path / "nowhere.json")
    assert "No such file" in refusal(tmp_path)  # a folder without config.json
    assert "File name too long" in refusal(tmp_path / ("long" * 80))
    (tmp_path / "huge.json").write_bytes(b" " * 10_000_001)
    assert "larger than" in refusal(tmp_path / "huge.json")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "value", [0, -1, 1.5, "64", True, 10**12, [3], {"a": 1}, 10**5000], ids=lambda v: type(v).__name__
)
def test_sizes_that_are_none(family, value):
    hidden = "n_embd" if family == "gpt2" else "hidden_size"
    with pytest.raises(PlanError, match=f"{hidden}: expected a whole number") as error:
        architecture_of(SMALL[family] | {hidden: value})
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "foundry"])
def test_every_size_is_required(family):
    sizes = [
        key
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "n_embd", "n_layer", "n_head")
        if key in SMALL[family]
    ]
    for key in sizes:
        for values in ({k: v for k, v in SMALL[family].items() if k != key}, SMALL[family] | {key: None}):
            with pytest.raises(PlanError, match=f"{key}: missing"):
                architecture_of(values)


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        (
            "llama",
            {"num_key_value_heads": 3},
            "num_key_value_heads: 3 does not divide num_attention_heads = 4",
        ),
        ("llama", {"num_attention_heads": 5, "num_key_value_heads": 5}, "5 does not divide hidden_size = 32"),
        ("gpt2", {"n_head": 5}, "5 does not divide n_embd = 32"),
        ("qwen3", {"head_dim": 7}, "head_dim: 7 is odd"),
        ("gpt2", {"add_cross_attention": True}, "encoder-decoder"),
        ("mixtral", {"num_experts_per_tok": 9}, "9 is more than num_local_experts = 4"),
        ("gemma2", {"layer_types": ["full_attention"]}, "1 entries for num_hidden_layers = 3"),
        ("gemma2", {"layer_types": ["x"] * 3}, "expected full_attention or sliding_attention"),
        ("qwen3_moe", {"mlp_only_layers": ["1"]}, "mlp_only_layers: expected a list of whole numbers"),
        ("deepseek_v3", {"qk_rope_head_dim": 7}, "qk_rope_head_dim: 7 is odd"),
        ("foundry", {"ffn_type": "moe"}, "ffn_type: expected one of swiglu, standard, found 'moe'"),
        ("foundry", {"qk_norm": 1}, "qk_norm: expected true or false"),
        ("foundry", {"position_encoding": "learned", "rope_theta": 1e4}, "rope_theta: has no meaning"),
    ],
)
def test_impossible_models(family, change, words):
    with pytest.raises(PlanError, match="configuration: ") as error:
        architecture_of(SMALL[family] | change)
    assert words in str(error.value)


# ------------------------------------------------------------------------------------------------ recipes


def test_a_recipe_is_read_with_the_training_script_s_defaults(write_config):
    model = read_model(write_config(RECIPE, "pretrain.yaml"))
    block = model.architecture.last_block
    assert (block.attention.num_key_value_heads, block.attention.head_dim, block.attention.qk_norm) == (
        4,
        16,
        True,
    )
    assert model.recipe.max_steps == 1000
    assert model.recipe.tokens_per_step(3) == 4 * 3 * 32


def test_recipe_defaults_equal_the_training_script_s(write_config):
    from modeling_foundry.pretraining.model_settings import ModelSettings, foundry_config

    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = foundry_config(ModelSettings(vocab_size=1024), 64, 1000, ids)
    planned = read_model(
        write_config("vocab_size: 1024\nsequence_length: 64\n", "pretrain.yaml")
    ).architecture
    assert planned == architecture_of(config.to_dict())


@pytest.mark.parametrize(
    "recipe", sorted(path.parent.name for path in (REPOSITORY / "recipes").glob("*/pretrain.yaml"))
)
def test_every_recipe_of_the_repository_is_planned(recipe):
    model = read_model(REPOSITORY / "recipes" / recipe / "pretrain.yaml")
    assert model.recipe is not None
    assert count_parameters(model.architecture).total > 0


def test_vocabulary_comes_from_where_the_training_script_looks(tmp_path):
    text = RECIPE.replace("vocab_size: 1000\n", "")
    path = tmp_path / "pretrain.yaml"
    path.write_text(text)
    assert "vocab_size: missing" in refusal(path)
    (tmp_path / "data.yaml").write_text("vocab_size: 300\n")
    assert read_model(path).architecture.vocab_size == 384  # rounded up to 128 rows
    path.write_text(text + "text_file_vocab_size: 500\n")
    assert read_model(path).architecture.vocab_size == 512
    tokenizer = tmp_path / "data" / "tokenizer"
    tokenizer.mkdir(parents=True)
    content = {"model": {"vocab": {"a": 0, "b": 256}}, "added_tokens": [{"id": 257}]}
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    path.write_text(text + f"data_dir: {tmp_path / 'data'}\n")
    assert read_model(path).architecture.vocab_size == 384
    (tokenizer / "tokenizer.json").write_text("{}")
    assert "not a tokenizer file" in refusal(path)
    path.write_text(text + f"data_dir: {'long' * 80}\n")  # no folder can have this name
    assert read_model(path).architecture.vocab_size == 384


@pytest.mark.parametrize("key", ["num_hidden_layer", "qk_nrom", "hiden_size", "normalisation"])
def test_a_misspelt_architecture_key_is_refused(key, write_config):
    assert "did you mean" in refusal(write_config(f"{RECIPE}{key}: 3\n", "pretrain.yaml"))


def test_a_key_given_twice_names_the_line(write_config):
    message = refusal(write_config(RECIPE + "vocab_size: 5\n", "pretrain.yaml"))
    assert ":11: vocab_size: given twice" in message


# ------------------------------------------------------------------------------------------------- fuzzing

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300)
@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_any_value_under_any_key_is_an_architecture_or_one_line(data, family):
    values = dict(SMALL[family])
    for key in data.draw(
        st.lists(st.sampled_from([*values, "layer_types", "tie_word_embeddings"]), max_size=3)
    ):
        values[key] = data.draw(json_values)
    try:
        architecture = architecture_of(values)
    except PlanError as error:
        check_line(error)
    else:
        assert count_parameters(architecture).total > 0


@settings(max_examples=300)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_a_mapping_or_one_line(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(content)
    try:
        read_model(path)
    except PlanError as error:
        check_line(error)


def test_all_known_families_are_tested():
    assert sorted(KNOWN) == sorted(FAMILIES)
    assert read_mapping(REPOSITORY / "recipes/quickstart/pretrain.yaml")[1] is False
