"""The ``model`` keys of a recipe and the model built from them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from .. import FoundryConfig, FoundryForCausalLM
from ..model.configuration_foundry import attention_implementation
from ..model.parameters import assert_built_as_requested
from ..settings import FoundryError, setting
from ..training.arguments import AttentionBackend

ROWS_MULTIPLE = 128  # embedding rows: a multiple of 128 keeps the head's matmul on whole tiles


@dataclass
class ModelSettings:
    """Components and sizes.  Defaults are Qwen3's components; sizes come from the recipe."""

    hidden_size: int = setting("width of the residual stream", 2048)
    intermediate_size: int = setting("width of the feed-forward layer", 6144)
    num_hidden_layers: int = setting("decoder layers", 24)
    num_attention_heads: int = setting("query heads", 16)
    num_key_value_heads: int | None = setting(
        "key/value heads; equal to the query heads is MHA, 1 is MQA", None
    )
    head_dim: int | None = setting("size of one head; default hidden_size / num_attention_heads", None)
    vocab_size: int | None = setting("embedding rows; default the tokenizer's ids rounded up to 128", None)
    normalization: Literal["rmsnorm", "layernorm"] = setting("normalization layer", "rmsnorm")
    position_encoding: Literal["rope", "learned"] = setting("how positions enter", "rope")
    ffn_type: Literal["swiglu", "standard"] = setting("gated (three matrices) or plain (two)", "swiglu")
    hidden_act: str | None = setting("activation; default silu for swiglu, gelu for standard", None)
    qk_norm: bool = setting("normalize queries and keys per head (Qwen3)", True)
    attention_bias: bool = setting("biases in the attention projections", False)
    mlp_bias: bool = setting("biases in the feed-forward layer", False)
    tie_word_embeddings: bool = setting("one matrix for embedding and head", False)
    rope_theta: float | None = setting("RoPE base; default 1e6", None)
    norm_eps: float = setting("epsilon of the normalization layers", 1e-6)
    attention_dropout: float = setting("dropout on attention weights", 0.0)
    initializer_range: float = setting("standard deviation of the initial weights", 0.02)
    loss_chunk_tokens: int = setting("rows of logits that exist at one time", 8192)
    z_loss_weight: float = setting("weight of the squared log-partition (PaLM); 0 is off", 0.0)
    attention_backend: AttentionBackend = setting(
        "attention kernel; auto is sdpa, which picks PyTorch's fastest", "auto"
    )
    model_dtype: Literal["float32", "bfloat16"] = setting("dtype of the parameters", "float32")


def foundry_config(
    settings: ModelSettings, sequence_length: int, num_token_ids: int, token_ids: dict[str, int | None]
) -> FoundryConfig:
    """The architecture a recipe asks for.

    Args:
        sequence_length: tokens of one training sequence; the number of positions.
        num_token_ids: ids the tokenizer can produce; the embedding must hold them all.
        token_ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.

    Raises:
        FoundryError: naming the key that cannot be honoured.
    """
    values = {entry.name: getattr(settings, entry.name) for entry in fields(settings)}
    for name in ("attention_backend", "model_dtype"):
        values.pop(name)
    if settings.vocab_size is None:
        values["vocab_size"] = -(-num_token_ids // ROWS_MULTIPLE) * ROWS_MULTIPLE
    theta = values.pop("rope_theta")
    if theta is not None and settings.position_encoding != "rope":
        raise FoundryError(
            f"rope_theta: {theta} has no meaning with position_encoding {settings.position_encoding}"
        )
    if values["vocab_size"] < num_token_ids:
        raise FoundryError(
            f"vocab_size: {values['vocab_size']} rows cannot hold the tokenizer's {num_token_ids} ids; "
            f"give at least {-(-num_token_ids // ROWS_MULTIPLE) * ROWS_MULTIPLE}"
        )
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}} if theta is not None else {}
    try:
        return FoundryConfig(**values, **rope, **token_ids, max_position_embeddings=sequence_length)
    except (ValueError, TypeError) as error:
        raise FoundryError(f"model settings: {' '.join(str(error).split())}") from error


def build_model(
    config: FoundryConfig, settings: ModelSettings, device: torch.device | str = "cpu"
) -> FoundryForCausalLM:
    """A freshly initialised model on ``device``, asserted equal to what was asked for.

    A GPU draws 1.8 billion random numbers in a second, a CPU core in a minute; the two draw different ones.

    Raises:
        FoundryError: the attention backend is not available here.
    """
    implementation = attention_implementation(settings.attention_backend)
    try:
        with torch.device(device):
            model = FoundryForCausalLM._from_config(
                config, attn_implementation=implementation, dtype=getattr(torch, settings.model_dtype)
            )
    except (ImportError, ValueError, RuntimeError) as error:
        raise FoundryError(
            f"attention_backend: {settings.attention_backend}: {' '.join(str(error).split())}"
        ) from error
    assert_built_as_requested(model, config)
    return model


def describe_model(model: Any) -> str:
    """One line: layers, widths, heads, components."""
    config = model.config
    heads, key_values = config.num_attention_heads, config.num_key_value_heads
    kind = "MHA" if heads == key_values else "MQA" if key_values == 1 else "GQA"
    embeddings = "tied" if config.tie_word_embeddings else "untied"
    return (
        f"{config.num_hidden_layers} layers, hidden {config.hidden_size:,}, {kind} {heads}/{key_values} x "
        f"{config.head_dim}, {config.ffn_type} {config.intermediate_size:,}, {config.normalization}, "
        f"{config.position_encoding}, {'QK-norm, ' if config.qk_norm else ''}{config.vocab_size:,} rows "
        f"{embeddings}"
    )
