"""An export read by others: both names of each field, a tokenizer class that all have, a template of plain Jinja.

What transformers 4.57.6 makes of such a folder was tried by hand (docs/publish.md); here the files are read.
"""

import json

import pytest
import torch
from jinja2 import Environment, TemplateSyntaxError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling_foundry.data.tokenizer.training import CHAT_TEMPLATE, train_tokenizer
from modeling_foundry.model.conversion import export_stock
from modeling_foundry.model.plain_template import plain_template, without_marks
from modeling_foundry.model.portable_files import (
    check_generation_config,
    portable_config,
    write_portable_tokenizer,
)
from modeling_foundry.publishing.verification import TEXTS
from modeling_foundry.settings import FoundryError
from tests.conftest import SOURCE_TEXT, closed_files

ROPES = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e6, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
        "factor": 4.0, "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([SOURCE_TEXT, "café naïve 한국 12345"], vocab_size=320)


@pytest.fixture
def saved(build, tokenizer, tmp_path):
    """A Foundry folder with a tokenizer, changed as asked."""

    def save(**changes):
        folder = tmp_path / "foundry"
        model = build(vocab_size=320, max_position_embeddings=64, **changes)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def read(folder, name="config.json"):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_both_names_of_the_rope_fields(saved, tmp_path, kind, family):
    rope = ROPES[kind]
    folder = saved(rope_parameters=dict(rope), qk_norm=family == "qwen3")
    export_stock(folder, tmp_path / "out", family)
    config = read(tmp_path / "out")
    assert config["rope_theta"] == rope["rope_theta"]
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    assert config["rope_scaling"] == (None if kind == "default" else scaling)
    assert config.get("original_max_position_embeddings") == (16 if kind == "longrope" else None)
    today = AutoConfig.from_pretrained(tmp_path / "out").rope_parameters
    assert {name: today[name] for name in rope} == rope, "transformers 5 reads what it did"


def test_what_version_4_has_another_default_for_is_written(saved, tmp_path):
    folder = saved(tie_word_embeddings=False, qk_norm=False, norm_eps=1e-5, eos_token_id=None)
    export_stock(folder, tmp_path / "out", "llama")
    config = read(tmp_path / "out")
    # LlamaConfig of 4.57.6: bos 1, eos 2, theta 10,000, float32 where torch_dtype is missing.
    expected = {
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
        "attention_bias": False, "mlp_bias": False, "head_dim": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e6,
        "torch_dtype": "float32", "dtype": "float32", "use_cache": True,
    }  # fmt: skip
    assert {name: config.get(name, "absent") for name in expected} == expected
    assert "_from_model_config" not in read(tmp_path / "out", "generation_config.json")
    assert not closed_files(tmp_path / "out")


def test_a_stock_folder_of_the_old_names_gets_both(tmp_path, tokenizer):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    }  # fmt: skip
    folder = tmp_path / "qwen3"
    Qwen3ForCausalLM(Qwen3Config(**sizes)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = read(folder) | {"rope_theta": 12345.0, "rope_scaling": None, "torch_dtype": "bfloat16"}
    for name in ("rope_parameters", "dtype"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    export_stock(folder, tmp_path / "out")
    made = read(tmp_path / "out")
    assert made["rope_parameters"] == {"rope_type": "default", "rope_theta": 12345.0}
    assert (made["rope_theta"], made["dtype"], made["torch_dtype"]) == (12345.0, "bfloat16", "bfloat16")


def test_a_longrope_of_which_readers_make_two_models_is_refused():
    rope = ROPES["longrope"] | {"factor": 8.0}
    config = {"rope_parameters": rope, "max_position_embeddings": 64}
    with pytest.raises(FoundryError, match=r"factor 8.0 of longrope is not .*\(64 / 16\)"):
        portable_config(config)
    rope["attention_factor"] = 1.1
    assert portable_config(config)["rope_scaling"]["attention_factor"] == 1.1


# ------------------------------------------------------------------------------------------------- tokenizer


def test_the_tokenizer_is_one_that_every_reader_knows(saved, tmp_path):
    folder = saved()
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # as a stage that loaded it saves it again
    assert read(folder, "tokenizer_config.json")["is_local"] is True, "what must not be published"
    before = AutoTokenizer.from_pretrained(folder)
    export_stock(folder, tmp_path / "out")
    config = read(tmp_path / "out", "tokenizer_config.json")
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"], "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "chat_template": CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", ""),
    }  # fmt: skip
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == config["chat_template"]
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(after).__name__ == "TokenizersBackend"
    assert after.all_special_tokens == before.all_special_tokens
    for text in TEXTS:
        assert after(text)["input_ids"] == before(text)["input_ids"], text
    assert after("cafe\u0301")["input_ids"] == after("café")["input_ids"], "NFC is in tokenizer.json"


def test_a_length_left_from_training_does_not_cut_the_prompts_of_others(saved, tmp_path):
    """transformers resets it; the tokenizers library, and readers that stand on it, obey it."""
    from tokenizers import Tokenizer

    folder = saved()
    used = AutoTokenizer.from_pretrained(folder)
    used(["long " * 9, "short"], truncation=True, max_length=3, padding="max_length")
    used.save_pretrained(folder)
    assert len(Tokenizer.from_file(str(folder / "tokenizer.json")).encode("a b c d e").ids) == 3
    export_stock(folder, tmp_path / "out")
    written = read(tmp_path / "out", "tokenizer.json")
    assert (written["truncation"], written["padding"]) == (None, None)
    assert len(Tokenizer.from_file(str(tmp_path / "out/tokenizer.json")).encode("a b c d e").ids) > 3


def test_files_of_old_that_say_something_else_do_not_come_along(saved, tmp_path):
    """special_tokens_map.json decides where it is: what it decides is written where all look."""
    folder = saved()
    content = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>", "lstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(content))
    before = AutoTokenizer.from_pretrained(folder)
    assert before.eos_token == "<|im_end|>"
    export_stock(folder, tmp_path / "out")
    assert not (tmp_path / "out" / "special_tokens_map.json").exists()
    after = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (after.eos_token, after.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert after.all_special_ids == before.all_special_ids


def test_two_chat_templates_become_one(saved, tmp_path):
    folder = saved()
    config = read(folder, "tokenizer_config.json") | {"chat_template": "{{ 'another' }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    used = AutoTokenizer.from_pretrained(folder).chat_template
    export_stock(folder, tmp_path / "out")
    written = read(tmp_path / "out", "tokenizer_config.json")["chat_template"]
    assert written == (tmp_path / "out/chat_template.jinja").read_text() == without_marks(used)


def test_named_templates_come_along(saved, tmp_path):
    folder = saved()
    named = AutoTokenizer.from_pretrained(folder)
    named.chat_template = {
        "default": named.chat_template,
        "tool_use": "{%- for m in messages %}{{ m.role }}{% endfor %}",
    }
    named.save_pretrained(folder)
    export_stock(folder, tmp_path / "out")
    after = AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    assert after == {name: without_marks(text) for name, text in named.chat_template.items()}
    written = read(tmp_path / "out", "tokenizer_config.json")["chat_template"]
    assert {entry["name"]: entry["template"] for entry in written} == after


def test_a_larger_tokenizer_than_the_embedding_is_refused(saved, tmp_path, build):
    folder = saved()
    build(vocab_size=288).save_pretrained(folder)
    with pytest.raises(
        FoundryError, match=r"tokenizer.json: token ids up to \d+, and the embedding has 288 rows"
    ):
        export_stock(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_vocabulary_files_of_the_checkpoint_come_along(saved, tmp_path):
    folder = saved()
    for name in ("vocab.json", "merges.txt"):
        (folder / name).write_text("as it was")
    export_stock(folder, tmp_path / "out")
    assert {(tmp_path / "out" / name).read_text() for name in ("vocab.json", "merges.txt")} == {"as it was"}


# ------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"eos_token_id": [2, 320]}, "eos_token_id: 320 is none of the model's 320 token ids"),
        ({"eos_token_id": "2"}, "eos_token_id: '2' is none"),
        ({"eos_token_id": [2, None, "x"]}, "eos_token_id: 'x' is none"),
        ({"pad_token_id": -1}, "pad_token_id: -1 is none"),
        ({"bos_token_id": 1.0}, "bos_token_id: 1.0 is none"),
        ({"eos_token_id": True}, "eos_token_id: True is none"),
        ({"do_sample": True, "temperature": "0.7"}, "temperature"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"do_sample": True, "top_k": 2.5}, "top_k"),
        ({"do_sample": True, "top_k": -3}, "top_k"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_length": "20"}, "max_length"),
    ],
)  # fmt: skip
def test_generation_settings_that_others_would_refuse_are_refused(tmp_path, changed, message):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]} | changed))
    with pytest.raises(FoundryError, match=rf"generation_config.json: .*{message}") as error:
        check_generation_config(tmp_path, 320)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["[]", "{", '"x"'])
def test_generation_settings_that_are_none_are_one_line(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(FoundryError, match=r"generation_config.json: not "):
        check_generation_config(tmp_path, 320)


@pytest.mark.parametrize(
    "content",
    [
        {
            "eos_token_id": [2, 0],
            "pad_token_id": 0,
            "do_sample": True,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
        },
        {"eos_token_id": 2, "temperature": 1, "repetition_penalty": 2, "max_new_tokens": 64},
        {},
    ],
)
def test_generation_settings_that_are_right_pass(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    check_generation_config(tmp_path, 320)


def test_a_whole_number_is_written_as_the_float_that_transformers_wants(saved, tmp_path):
    """generate() refuses temperature 2: it has to be a float."""
    folder = saved()
    content = {
        "eos_token_id": [2, 0],
        "do_sample": True,
        "temperature": 2,
        "repetition_penalty": 2,
        "top_k": 7,
    }
    (folder / "generation_config.json").write_text(json.dumps(content))
    export_stock(folder, tmp_path / "out")
    written = read(tmp_path / "out", "generation_config.json")
    assert {name: written[name] for name in content} == content
    assert [type(written[name]) for name in ("temperature", "repetition_penalty", "top_k")] == [
        float,
        float,
        int,
    ]


# ------------------------------------------------------------------------------------------------- template

TURN = "{%- for message in messages %}<{{ message.role }}>"
LINES = """{%- for message in messages %}
<{{ message.role }}>
    {% generation %}
    {{ message.content }}
    {% endgeneration %}

{% endfor %}
"""


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        LINES,
        LINES.replace("{% generation %}", "{%- generation -%}").replace("{% endgen", "{%- endgen"),
        LINES.replace("{% generation %}", "{%+ generation +%}").replace("endgeneration %}", "endgeneration -%}"),
        TURN + "\n\n  {%-generation-%}\n\n x {{ message.content }} \n{%endgeneration%}\n\n y {% endfor %}",
        TURN + "{% if true %}{% generation %}\n\n{{ message.content }}{% endgeneration %}\n\n{% endif %}{% endfor %}",
        TURN + "{# {% generation %} marks #}{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}",
        TURN + "{% raw %}{% generation %}{% endraw %}{% generation %}{{ message }}{% endgeneration %}{% endfor %}",
        TURN + "{{ '{% generation %}' }}{% generation %}{{ \"it's \\\"\" }}{% endgeneration %}{% endfor %}",
        TURN + "{%   generation\n%} {% set a = '%}' %}{{ a }}{% endgeneration %}{% endfor %}",
    ],
)  # fmt: skip
def test_what_is_left_is_plain_jinja_and_says_the_same(tokenizer, template):
    with pytest.raises(TemplateSyntaxError):
        Environment().parse(template)
    plain = plain_template(tokenizer, template, "here")
    Environment(trim_blocks=True, lstrip_blocks=True).parse(plain)
    for chat in (
        [{"role": "user", "content": " a \n"}, {"role": "assistant", "content": "\n b "}],
        [{"role": "x", "content": ""}],
    ):
        before, after = (
            tokenizer.apply_chat_template(chat, chat_template=text, tokenize=False)
            for text in (template, plain)
        )
        assert before == after


def test_a_template_without_marks_stays_letter_for_letter(tokenizer):
    template = (
        "{%- for m in messages %}{# generation #} {% if generation %}x{% endif %}{{ m.content }}{% endfor %}"
    )
    assert plain_template(tokenizer, template, "here") == template


def test_a_variable_that_the_marks_kept_inside_is_a_refusal(tokenizer):
    template = (
        "{%- for message in messages %}{% set word = 'out' %}"
        "{% generation %}{% set word = 'in' %}{{ message.content }}{% endgeneration %}{{ word }}{% endfor %}"
    )
    with pytest.raises(
        FoundryError, match=r"here: without .*the chat template says .*set no variable inside"
    ):
        plain_template(tokenizer, template, "here")


def test_a_template_that_renders_nothing_is_a_refusal(tokenizer):
    template = "{{ raise_exception('never') }}{% generation %}{% endgeneration %}"
    with pytest.raises(FoundryError, match=r"here: the chat template renders no conversation .*never"):
        plain_template(tokenizer, template, "here")


def test_another_tag_of_transformers_is_a_refusal(tokenizer):
    template = "{% generation %}{{ 1 }}{% endgeneration %}{% response %}"
    with pytest.raises(FoundryError, match=r"here: without .*none of plain Jinja"):
        plain_template(tokenizer, template, "here")


def test_a_template_with_the_marks_of_a_stock_model_loses_them(tmp_path, tokenizer):
    """An export is fine-tuned again with a template that has marks, and published again."""
    torch.manual_seed(0)
    folder = tmp_path / "llama"
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    export_stock(folder, tmp_path / "out", "llama")
    assert "{% generation" not in (tmp_path / "out" / "chat_template.jinja").read_text()
    export_stock(tmp_path / "out", tmp_path / "again", "llama")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_tokenizer_that_is_damaged_is_one_line(saved, tmp_path):
    folder = saved()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FoundryError, match="its tokenizer cannot be loaded"):
        write_portable_tokenizer(folder, tmp_path, 64, 320)
