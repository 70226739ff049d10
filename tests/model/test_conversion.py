"""Checkpoint folders to and from stock families pass the parity gate or are refused by name."""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from modeling_foundry.model import conversion
from modeling_foundry.model.conversion import (
    export_stock,
    from_llama,
    from_qwen3,
    import_stock,
    to_llama,
    to_qwen3,
)
from modeling_foundry.settings import FoundryError

STOCK = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_export_and_back(build, tokens, tmp_path, dtype, tied):
    model = build(tie_word_embeddings=tied, eos_token_id=2, pad_token_id=2).to(dtype)
    model.save_pretrained(tmp_path / "foundry")
    parity = export_stock(tmp_path / "foundry", tmp_path / "qwen3")
    assert (parity.max_logit_difference, parity.greedy_tokens_equal) == (0.0, True)
    saved = json.loads((tmp_path / "qwen3" / "config.json").read_text())
    assert saved["model_type"] == "qwen3"
    assert "auto_map" not in saved
    assert saved["eos_token_id"] == 2
    assert saved["use_cache"] is True
    assert not list((tmp_path / "qwen3").glob("*.py"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "qwen3").eval()
    assert type(stock) is Qwen3ForCausalLM
    assert stock.dtype == dtype
    assert torch.equal(stock(tokens).logits, model(tokens).logits)
    import_stock(tmp_path / "qwen3", tmp_path / "back")
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert torch.equal(back(tokens).logits, model(tokens).logits)
    assert (tmp_path / "back" / "modeling_foundry.py").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "foundry", "qwen3"]


def test_llama_folder(tmp_path, tokens):
    torch.manual_seed(0)
    stock = LlamaForCausalLM(LlamaConfig(**STOCK, rms_norm_eps=1e-5)).eval()
    stock.save_pretrained(tmp_path / "llama")
    import_stock(tmp_path / "llama", tmp_path / "foundry", family="llama")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "foundry").eval()
    assert (model.config.norm_eps, model.config.rope_parameters["rope_theta"]) == (1e-5, 10_000.0)
    assert torch.equal(model(tokens).logits, stock(tokens).logits)
    export_stock(tmp_path / "foundry", tmp_path / "again", family="llama")


BLOCKED = {
    "normalization": "layernorm",
    "position_encoding": "learned",
    "ffn_type": "standard",
    "mlp_bias": True,
    "qk_norm": False,
}


@pytest.mark.parametrize("component", BLOCKED)
def test_export_names_the_component_that_blocks_it(build, component):
    with pytest.raises(
        FoundryError, match=rf"stock qwen3 model: it has no .*{component}={BLOCKED[component]}"
    ):
        to_qwen3(build(**{component: BLOCKED[component]}))


def test_llama_has_no_qk_norm(build):
    with pytest.raises(FoundryError, match="stock llama model: it has no qk_norm=True"):
        to_llama(build())


def test_stock_models_foundry_cannot_honour_are_refused():
    sliding = Qwen3ForCausalLM(Qwen3Config(**STOCK, use_sliding_window=True, sliding_window=8))
    with pytest.raises(FoundryError, match="use_sliding_window=True"):
        from_qwen3(sliding)
    gelu = LlamaForCausalLM(LlamaConfig(**STOCK, hidden_act="gelu"))
    with pytest.raises(FoundryError, match="hidden_act=gelu"):
        from_llama(gelu)
    with pytest.raises(FoundryError, match="LlamaForCausalLM is not Qwen3ForCausalLM"):
        from_qwen3(gelu)


def test_a_folder_of_another_architecture_is_refused_though_its_tensors_fit(tmp_path):
    """A window wider than the gate's probe would pass the gate and be lost."""
    MistralForCausalLM(MistralConfig(**STOCK, sliding_window=4096)).save_pretrained(tmp_path / "mistral")
    with pytest.raises(FoundryError, match=r"config.json: model_type 'mistral' is not 'llama'"):
        import_stock(tmp_path / "mistral", tmp_path / "foundry", family="llama")


def test_a_quantized_folder_is_refused(tmp_path):
    folder = tmp_path / "llama"
    LlamaForCausalLM(LlamaConfig(**STOCK)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FoundryError, match=r"config.json: quantization_config"):
        import_stock(folder, tmp_path / "foundry", family="llama")


@pytest.mark.parametrize("content", ["[]", '"llama"', "{"])
def test_a_configuration_that_is_no_object_is_one_line(content, tmp_path):
    folder = tmp_path / "llama"
    LlamaForCausalLM(LlamaConfig(**STOCK)).save_pretrained(folder)
    (folder / "config.json").write_text(content)
    with pytest.raises(FoundryError, match=r"config.json: not "):
        import_stock(folder, tmp_path / "foundry", family="llama")


def test_a_field_foundry_cannot_honour_is_one_line():
    with pytest.raises(FoundryError, match="cannot become a foundry model: pad_token_id=-1"):
        from_llama(LlamaForCausalLM(LlamaConfig(**STOCK, pad_token_id=-1)))


def test_unknown_family_and_bad_folders_are_refused(build, tmp_path):
    with pytest.raises(FoundryError, match="'gpt2' is not one of qwen3, llama"):
        export_stock(tmp_path / "a", tmp_path / "b", family="gpt2")
    with pytest.raises(FoundryError, match="no such folder"):
        export_stock(tmp_path / "a", tmp_path / "b")
    build().save_pretrained(tmp_path / "full")
    with pytest.raises(FoundryError, match="not empty"):
        export_stock(tmp_path / "full", tmp_path / "full")


def test_the_gate_stops_a_difference_and_leaves_nothing(build, tmp_path, monkeypatch):
    build().save_pretrained(tmp_path / "foundry")
    honest = conversion._rebuild

    def off_by_a_bit(*arguments):
        rebuilt = honest(*arguments)
        with torch.no_grad():
            rebuilt.model.norm.weight[0] += 1e-3
        return rebuilt

    monkeypatch.setattr(conversion, "_rebuild", off_by_a_bit)
    with pytest.raises(FoundryError, match="differs from the original"):
        export_stock(tmp_path / "foundry", tmp_path / "qwen3")
    assert [path.name for path in tmp_path.iterdir()] == ["foundry"]
