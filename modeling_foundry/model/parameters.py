"""What parameters a configuration asks for, and the proof that a built model has exactly those.

The earlier system's flagship was configured with 8 key-value heads and silently trained with 16.
"""

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.configuration_utils import PreTrainedConfig

from ..settings import FoundryError
from .configuration_foundry import FoundryConfig

Shapes = dict[str, tuple[int, ...]]


def parameter_shapes(config: FoundryConfig) -> Shapes:
    """Name and shape of every entry a causal language model of this configuration has, tied ones included."""
    shapes: Shapes = {"model.embed_tokens.weight": (config.vocab_size, config.hidden_size)}
    if config.position_encoding == "learned":
        shapes["model.embed_positions.weight"] = (config.max_position_embeddings, config.hidden_size)
    for i in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in _layer_shapes(config).items()}
    shapes |= {
        f"model.{name}": shape for name, shape in _norm_shapes(config, "norm", config.hidden_size).items()
    }
    return shapes | {"lm_head.weight": (config.vocab_size, config.hidden_size)}


def count_parameters(config: FoundryConfig) -> int:
    """Number of parameters; a tied head counts once."""
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    return sum(_size(shape) for name, shape in parameter_shapes(config).items() if name not in tied)


def count_stock_parameters(config: PreTrainedConfig) -> int:
    """Number of parameters of a stock model; a tied head counts once.  Nothing is allocated."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config).num_parameters()


def assert_built_as_requested(model: nn.Module, config: FoundryConfig) -> None:
    """Compare every parameter of a causal language model with what ``config`` asks for.

    Works on meta, FSDP2 and DeepSpeed ZeRO-3 parameters, whose whole shape is known.

    Raises:
        FoundryError: naming the first parameter that is missing, extra or of another shape, embeddings that
            are tied or untied against the configuration, or another total.
    """
    wanted = parameter_shapes(config)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in parameters.items()
    }
    for name in wanted.keys() - found.keys():
        raise FoundryError(f"model: {name} is missing; the configuration asks for {wanted[name]}")
    for name in found.keys() - wanted.keys():
        raise FoundryError(f"model: {name} {found[name]} is not in the configuration")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise FoundryError(f"model: {name} is {found[name]}; the configuration asks for {shape}")
    tied = parameters["lm_head.weight"] is parameters["model.embed_tokens.weight"]
    if tied != config.tie_word_embeddings:
        raise FoundryError(
            f"model: embeddings tied={tied}; the configuration asks for {config.tie_word_embeddings}"
        )
    total = sum(_size(found[name]) for name, _ in model.named_parameters())
    if total != count_parameters(config):
        raise FoundryError(
            f"model: {total:,} parameters; the configuration asks for {count_parameters(config):,}"
        )


def _layer_shapes(config: FoundryConfig) -> Shapes:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shapes = _norm_shapes(config, "input_layernorm", hidden)
    for name, rows, columns in (
        ("q", queries, hidden),
        ("k", keys, hidden),
        ("v", keys, hidden),
        ("o", hidden, queries),
    ):
        shapes |= _linear_shapes(f"self_attn.{name}_proj", rows, columns, config.attention_bias)
    if config.qk_norm:
        shapes |= _norm_shapes(config, "self_attn.q_norm", config.head_dim)
        shapes |= _norm_shapes(config, "self_attn.k_norm", config.head_dim)
    shapes |= _norm_shapes(config, "post_attention_layernorm", hidden)
    for name in ("gate", "up") if config.ffn_type == "swiglu" else ("up",):
        shapes |= _linear_shapes(f"mlp.{name}_proj", inner, hidden, config.mlp_bias)
    return shapes | _linear_shapes("mlp.down_proj", hidden, inner, config.mlp_bias)


def _norm_shapes(config: FoundryConfig, name: str, size: int) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (size,)}
    return shapes | {f"{name}.bias": (size,)} if config.normalization == "layernorm" else shapes


def _linear_shapes(name: str, rows: int, columns: int, bias: bool) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (rows, columns)}
    return shapes | {f"{name}.bias": (rows,)} if bias else shapes


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
