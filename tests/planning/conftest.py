"""Configurations of every family: the real ones, whose counts are public, and small ones that can be run."""

import copy
import json

import pytest

REAL = {
    "foundry": {
        "model_type": "foundry", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "max_position_embeddings": 2048,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
        "n_positions": 1024,
    },
    "llama": {
        "model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048,
    },
    "mistral": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
        "max_position_embeddings": 32768,
    },
    "qwen2": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
        "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
        "tie_word_embeddings": True, "max_position_embeddings": 32768,
    },
    "qwen3": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
        "tie_word_embeddings": True, "max_position_embeddings": 40960,
    },
    "gemma": {
        "model_type": "gemma", "vocab_size": 256000, "hidden_size": 2048, "intermediate_size": 16384,
        "num_hidden_layers": 18, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
    },
    "gemma2": {
        "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "sliding_window": 4096,
    },
    "mixtral": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
        "num_experts_per_tok": 2, "max_position_embeddings": 32768,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "max_position_embeddings": 40960,
    },
    "deepseek_v3": {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "kv_lora_rank": 512,
        "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128,
        "num_experts_per_tok": 8, "first_k_dense_replace": 3, "num_nextn_predict_layers": 1,
        "max_position_embeddings": 4096,
    },
}  # fmt: skip

# Totals as published or as the public checkpoints hold them.
PUBLISHED_TOTALS = {
    "foundry": 1_830_395_904,
    "gpt2": 124_439_808,
    "llama": 6_738_415_616,
    "mistral": 7_241_732_096,
    "qwen2": 1_543_714_304,
    "qwen3": 596_049_920,
    "gemma": 2_506_172_416,
    "gemma2": 2_614_341_888,
    "mixtral": 46_702_792_704,
    "qwen3_moe": 30_532_122_624,
    "deepseek_v3": 671_026_404_352,
}

_COMMON = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 3, "max_position_embeddings": 64}
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {
    "foundry": {**_COMMON, **_HEADS, "head_dim": 8, "intermediate_size": 48},
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "llama": {**_COMMON, **_HEADS, "intermediate_size": 48, "attention_bias": True, "mlp_bias": True},
    "mistral": {**_COMMON, **_HEADS, "intermediate_size": 48, "head_dim": 16, "sliding_window": None},
    "qwen2": {**_COMMON, **_HEADS, "intermediate_size": 48},
    "qwen3": {**_COMMON, **_HEADS, "head_dim": 16, "intermediate_size": 48, "attention_bias": True},
    "gemma": {**_COMMON, **_HEADS, "head_dim": 16, "intermediate_size": 48},
    "gemma2": {**_COMMON, **_HEADS, "head_dim": 16, "intermediate_size": 48, "sliding_window": 16},
    "mixtral": {
        **_COMMON, **_HEADS, "intermediate_size": 24, "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        **_COMMON, **_HEADS, "head_dim": 16, "intermediate_size": 48, "moe_intermediate_size": 24,
        "num_experts": 6, "num_experts_per_tok": 2, "mlp_only_layers": [1],
    },
    "deepseek_v3": {
        **_COMMON, "intermediate_size": 48, "moe_intermediate_size": 16, "num_attention_heads": 4,
        "num_key_value_heads": 4, "n_shared_experts": 2, "n_routed_experts": 8, "kv_lora_rank": 12,
        "q_lora_rank": 20,
        "qk_rope_head_dim": 8, "v_head_dim": 10, "qk_nope_head_dim": 6, "num_experts_per_tok": 3,
        "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0,
    },
}  # fmt: skip
for _name, _values in SMALL.items():
    _values["model_type"] = _name
FAMILIES = list(REAL)


def transformers_config(values: dict):
    """The library's own configuration object of a dictionary."""
    from transformers import AutoConfig

    import modeling_foundry  # noqa: F401 - registers the foundry family

    values = copy.deepcopy(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def build_model(values: dict, device: str = "cpu", attention: str = "eager"):
    """The library's own model of a dictionary; experts run one by one, as FlopCounterMode sees them."""
    import torch
    from transformers import AutoModelForCausalLM

    config = transformers_config(values)
    config._experts_implementation = "eager"
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32)


@pytest.fixture
def write_config(tmp_path):
    """Writes a dictionary (or text) as a file and returns its path."""

    def write(values, name="config.json"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else json.dumps(values))
        return path

    return write
