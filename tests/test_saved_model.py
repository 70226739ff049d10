"""A folder that is not a whole checkpoint is one line, and never a model with random parts."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_foundry import FoundryConfig, FoundryForCausalLM
from modeling_foundry.data.tokenizer.training import train_tokenizer
from modeling_foundry.saved_model import load_model, load_tokenizer
from modeling_foundry.settings import FoundryError
from tests.conftest import SOURCE_TEXT

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "model"
    config = FoundryConfig(
        vocab_size=384, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=128, tie_word_embeddings=True,
    )  # fmt: skip
    FoundryForCausalLM(config).save_pretrained(folder)
    train_tokenizer([SOURCE_TEXT], 384).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def change(folder, edit):
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def test_a_whole_folder_is_loaded_as_it_is(folder):
    model = load_model(folder, dtype=torch.float32)
    stored = load_file(folder / WEIGHTS)
    assert all(torch.equal(model.state_dict()[name], stored[name]) for name in stored)
    assert load_tokenizer(folder).chat_template


@pytest.mark.parametrize(
    ("name", "expected"),
    [("config.json", r"no model here \(config\.json\)"), (WEIGHTS, r"no model here \(\*\.safetensors\)")],
)
def test_a_missing_file_is_named(folder, name, expected):
    (folder / name).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FoundryError, match=expected):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("adapter_config.json", "it is an adapter, not a model: merge it into its base"),
        ("pytorch_model.bin", r"its weights are pickles \(.bin\); save them as safetensors"),
        ("model-q4.gguf", "GGUF is for inference; give the safetensors it was made from"),
        ("model/config.json", "no model here .*; give .*/other/model$"),
        ("notes.txt", "run the stage before this one first, or give another folder"),
    ],
)
def test_a_folder_of_another_kind_is_named_for_what_it_is(name, expected, tmp_path):
    (tmp_path / "other" / name).parent.mkdir(parents=True)
    (tmp_path / "other" / name).write_text("{}")
    with pytest.raises(FoundryError, match=expected):
        load_model(tmp_path / "other")


def test_a_name_of_the_hub_is_no_folder():
    with pytest.raises(FoundryError, match=r"Qwen/Qwen3-0\.6B .*: no such folder; .*hf download"):
        load_model("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"model_type": "of nobody"}', b"\xff\xfe"])
def test_a_damaged_configuration_is_one_line(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(FoundryError, match=r"model: its model cannot be loaded \(") as error:
        load_model(folder)
    assert "\n" not in str(error.value)


def test_torn_weights_are_one_line(folder):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(FoundryError, match="its model cannot be loaded .*header"):
        load_model(folder)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"missing keys: model\.norm\.weight"),
        (lambda tensors: tensors.update(more=torch.zeros(2)), "unexpected keys: more"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}),
            r"mismatched keys: model\.norm\.weight",
        ),
    ],
)
def test_weights_of_another_model_are_refused(folder, edit, expected):
    """transformers warns, and draws what is missing at random."""
    change(folder, edit)
    with pytest.raises(FoundryError, match=expected):
        load_model(folder)


def test_a_shard_that_is_gone_is_named(folder):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / WEIGHTS).rename(folder / "model-00001-of-00002.safetensors")
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(FoundryError, match="model-00002-of-00002"):
        load_model(folder)


def test_a_tokenizer_that_is_gone_or_damaged_is_one_line(folder):
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(FoundryError, match="its tokenizer cannot be loaded"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FoundryError, match=r"no tokenizer here \(tokenizer\.json\)"):
        load_tokenizer(folder)
