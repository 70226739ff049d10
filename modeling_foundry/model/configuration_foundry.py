"""What a model is: every component and size, and a refusal for each combination that cannot be honoured."""

import dataclasses
import difflib
from typing import Any, NoReturn

from transformers.configuration_utils import PreTrainedConfig

NORMALIZATIONS = ("rmsnorm", "layernorm")
POSITION_ENCODINGS = ("rope", "learned")
FFN_TYPES = ("swiglu", "standard")
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
HIDDEN_ACTS = ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "quick_gelu", "relu", "relu2", "leaky_relu")

# Every word for a backend, and transformers' word for it.
ATTENTION_BACKENDS = {
    "auto": "sdpa",  # as fast as cuDNN by name: benchmarks/receipts/attention_backends.json
    "eager": "eager",
    "sdpa": "sdpa",
    "cudnn_sdpa": "cudnn_sdpa",
    "cudnn": "cudnn_sdpa",
    "flash_attention_2": "flash_attention_2",
    "flash_attn_2": "flash_attention_2",  # the earlier system's word
    "flash_attention_3": "flash_attention_3",
    "flash_attn_3": "flash_attention_3",
    "flex_attention": "flex_attention",
    "flex": "flex_attention",
}

# Words of other configurations that would otherwise be stored and never read.
FOREIGN_FIELDS = {
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_layers": "num_hidden_layers",
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "num_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "num_kv_heads": "num_key_value_heads",
    "n_inner": "intermediate_size",
    "d_ff": "intermediate_size",
    "ffn_dim": "intermediate_size",
    "ffn_hidden_size": "intermediate_size",
    "block_size": "max_position_embeddings",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "bias": "attention_bias and mlp_bias",
    "dropout": "attention_dropout",
    "attn_pdrop": "attention_dropout",
    "norm": "normalization",
    "position_embedding": "position_encoding",
    "ffn": "ffn_type",
    "tie_embeddings": "tie_word_embeddings",
    "partial_rotary_factor": "no field: every head dimension is rotated",
    "sliding_window": "no field: attention is full",
    "use_sliding_window": "no field: attention is full",
    "layer_types": "no field: attention is full in every layer",  # generate() would make a sliding cache of it
    "attention_chunk_size": "no field: attention is full",
    "no_rope_layers": "no field: every layer has the same positions",
    "use_qk_norm": "qk_norm",
    "qkv_bias": "attention_bias",
    "resid_pdrop": "no field: only attention_dropout",
    "embd_pdrop": "no field: only attention_dropout",
    "num_experts": "no field: the FFN is dense",
    "final_logit_softcapping": "no field: logits are not capped",
}

# Written into every config.json, so that a checkpoint loads where this package is not installed
# (trust_remote_code=True).  TRL 1.16 reads it from every registered configuration too.
AUTO_MAP = {
    "AutoConfig": "configuration_foundry.FoundryConfig",
    "AutoModel": "modeling_foundry.FoundryModel",
    "AutoModelForCausalLM": "modeling_foundry.FoundryForCausalLM",
}

_POSITIVE_INTEGERS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "loss_chunk_tokens",
)
_FLAGS = ["use_cache", "tie_word_embeddings", "qk_norm", "attention_bias", "mlp_bias"]
_CHOICES = {
    "normalization": NORMALIZATIONS,
    "position_encoding": POSITION_ENCODINGS,
    "ffn_type": FFN_TYPES,
    "hidden_act": HIDDEN_ACTS,
}


class FoundryConfig(PreTrainedConfig):
    """Architecture of a Foundry model; the defaults are Qwen3's components at the 1.8B flagship's size.

    Args:
        vocab_size: rows of the embedding and of the output head.
        hidden_size: width of the residual stream.
        intermediate_size: inner width of the FFN.
        num_attention_heads: query heads; ``num_key_value_heads`` must divide them (None: as many, i.e. MHA).
        head_dim: width of one head (None: ``hidden_size / num_attention_heads``).
        hidden_act: activation of the FFN.  None means SiLU for ``swiglu``, whose name allows no other, and
            GELU for ``standard``.
        max_position_embeddings: longest sequence; with learned positions also the rows of their table.
        norm_eps: added to the variance in every norm (``rms_norm_eps`` and ``layer_norm_eps`` name it too).
        rope_parameters: transformers' dictionary, ``{"rope_type": "default", "rope_theta": 1e6}`` when None.
            ``rope_theta=`` alone is accepted too.  None, and only None, with learned positions.
        normalization: ``rmsnorm`` (weight) or ``layernorm`` (weight and bias).
        position_encoding: ``rope`` or ``learned`` (a table added to the token embedding).
        ffn_type: ``swiglu`` (gate, up, down) or ``standard`` (up, activation, down).
        qk_norm: normalise each query and key head over ``head_dim``, with the kind ``normalization`` names.
        attention_bias: bias of the query, key, value and output projections.
        mlp_bias: bias of the FFN's projections.
        loss_chunk_tokens: rows of logits that exist at one time in the training loss.
        z_loss_weight: weight of the squared log-partition function in the training loss (PaLM used 1e-4).

    Raises:
        ValueError: one line naming the field, for anything the model could not honour.
    """

    model_type = "foundry"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - read as a plain class attribute
    attribute_map = dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"), "norm_eps")
    default_theta = 1_000_000.0
    base_model_pp_plan = {  # noqa: RUF012
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 151936
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str | None = None
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    norm_eps: float = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    normalization: str = "rmsnorm"
    position_encoding: str = "rope"
    ffn_type: str = "swiglu"
    qk_norm: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: float = 0.0
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    loss_chunk_tokens: int = 8192
    z_loss_weight: float = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        refuse_foreign_fields(kwargs)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.hidden_act is None:
            self.hidden_act = "silu" if self.ffn_type == "swiglu" else "gelu"
        if self.rope_parameters is not None:
            self.rope_parameters = dict(self.rope_parameters)  # the library writes defaults into it
        rope_word = next((word for word in ("rope_theta", "rope_scaling") if kwargs.get(word)), None)
        if self.position_encoding == "learned" and (self.rope_parameters or rope_word):
            refuse_rope(rope_word or "rope_parameters")
        super().__post_init__(**kwargs)
        if self.position_encoding == "learned":
            self.rope_parameters = None
        if self.head_dim is None:
            self.head_dim = self._head_dim_from_hidden_size()
        self.check_architecture()
        self.base_model_tp_plan = tensor_parallel_plan(self)
        if "auto_map" not in kwargs:
            self.auto_map = dict(AUTO_MAP)

    def _head_dim_from_hidden_size(self) -> int:
        _check_positive(self, ("hidden_size", "num_attention_heads"))
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads="
                f"{self.num_attention_heads}: name head_dim"
            )
        return self.hidden_size // self.num_attention_heads

    def check_architecture(self) -> None:
        """Refuse what the model cannot honour; called here and again before a model is built.

        Raises:
            ValueError: one line naming the field and what would be right.
        """
        _check_types(self)
        _check_combinations(self)
        if self.position_encoding == "rope":
            _check_rope(self)
        _check_token_ids(self)


def refuse_foreign_fields(kwargs: dict[str, Any]) -> None:
    """Raise ValueError for words of other configurations and misspelt ones: they would never be read."""
    ours = [field.name for field in dataclasses.fields(FoundryConfig)]
    for name, value in kwargs.items():
        if value is None or name in FoundryConfig.attribute_map:
            continue
        meant = FOREIGN_FIELDS.get(name)
        if meant is None and not name.endswith("_token_id"):
            meant = next(iter(difflib.get_close_matches(name, ours, n=1, cutoff=0.85)), None)
        if meant is not None:
            raise ValueError(f"unknown field {name!r} of FoundryConfig: use {meant}")


def refuse_rope(word: str) -> NoReturn:
    """Raise ValueError for a rotary setting of a model with learned positions."""
    raise ValueError(f"{word} has no meaning with position_encoding='learned': leave it out or choose 'rope'")


def attention_implementation(backend: str) -> str:
    """transformers' ``attn_implementation`` for an ``--attention_backend``, old words too."""
    if backend not in ATTENTION_BACKENDS:
        raise ValueError(f"attention_backend={backend!r} is not one of {', '.join(ATTENTION_BACKENDS)}")
    return ATTENTION_BACKENDS[backend]


def tensor_parallel_plan(config: FoundryConfig) -> dict[str, str]:
    """How transformers splits the base model over ranks: the modules this configuration has."""
    attention, ffn = "layers.*.self_attn", "layers.*.mlp"
    plan = {f"{attention}.{name}_proj": "colwise" for name in "qkv"}
    if config.qk_norm:
        plan |= {f"{attention}.{name}_norm": "replicated_with_grad_allreduce" for name in "qk"}
    plan[f"{attention}.o_proj"] = "rowwise"
    if config.ffn_type == "swiglu":
        plan[f"{ffn}.gate_proj"] = "colwise"
    return plan | {f"{ffn}.up_proj": "colwise", f"{ffn}.down_proj": "rowwise"}


def _check_positive(config: FoundryConfig, names: tuple[str, ...]) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a positive integer")


def _check_types(config: FoundryConfig) -> None:
    _check_positive(config, _POSITIVE_INTEGERS)
    for name in _FLAGS:
        if not isinstance(getattr(config, name), bool):
            raise ValueError(f"{name}={getattr(config, name)!r} must be true or false")
    for name, choices in _CHOICES.items():
        if getattr(config, name) not in choices:
            raise ValueError(f"{name}={getattr(config, name)!r} is not one of {', '.join(choices)}")
    for name, low, high in (
        ("initializer_range", 0.0, float("inf")),
        ("norm_eps", 0.0, float("inf")),
        ("attention_dropout", 0.0, 1.0),
        ("z_loss_weight", 0.0, 1.0),
    ):
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
            raise ValueError(f"{name}={value!r} must be a number of at least {low:g} and below {high:g}")


def _check_combinations(config: FoundryConfig) -> None:
    if config.num_attention_heads % config.num_key_value_heads:
        raise ValueError(
            f"num_attention_heads={config.num_attention_heads} is not a multiple of num_key_value_heads="
            f"{config.num_key_value_heads}: each key-value head must serve as many query heads"
        )
    if config.ffn_type == "swiglu" and config.hidden_act != "silu":
        raise ValueError(
            f"hidden_act={config.hidden_act!r} contradicts ffn_type='swiglu', whose gate is SiLU: "
            "leave hidden_act out or choose ffn_type='standard'"
        )
    if config.position_encoding == "learned" and config.rope_parameters is not None:
        refuse_rope("rope_parameters")
    if config.position_encoding == "rope" and config.head_dim % 2:
        raise ValueError(f"head_dim={config.head_dim} is odd: RoPE rotates pairs, choose an even head_dim")


def _check_rope(config: FoundryConfig) -> None:
    rope = config.rope_parameters or {}
    theta, kind = rope.get("rope_theta"), rope.get("rope_type")
    if isinstance(theta, bool) or not isinstance(theta, int | float) or theta <= 0:
        raise ValueError(f"rope_theta={theta!r} must be a positive number")
    if kind not in ROPE_TYPES:
        raise ValueError(f"rope_type={kind!r} is not one of {', '.join(ROPE_TYPES)}")
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError("partial_rotary_factor must be 1.0: every head dimension is rotated")
    if kind in ("linear", "dynamic", "yarn", "llama3") and rope.get("factor") is None:
        raise ValueError(f"rope_type={kind!r} needs a factor in rope_parameters")


def _check_token_ids(config: FoundryConfig) -> None:
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name)
        for token in value if isinstance(value, list) else [value]:
            if token is not None and not (isinstance(token, int) and 0 <= token < config.vocab_size):
                raise ValueError(f"{name}={token!r} is outside the {config.vocab_size} rows of the embedding")


FoundryConfig.register_for_auto_class()
