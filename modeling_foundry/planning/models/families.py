"""From a configuration's own words to an :class:`Architecture`, for every family the planner knows.

A missing key takes the default of the transformers class of that family, so that both describe the same
model; a size that has no sensible default must be there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .architecture import Architecture, Attention, Block, Experts, FeedForward, LatentAttention
from .fields import LARGEST_COUNT, Fields


def architecture_of(values: dict[str, Any], source: str = "configuration") -> Architecture:
    """The architecture of a Hugging Face configuration given as a dictionary.

    Raises:
        PlanError: an unknown family is refused by name; so is every value no model could have.
    """
    fields = Fields(values, source)
    family = _family(fields)
    return FAMILIES[family](fields)


def _family(fields: Fields) -> str:
    family, names = fields.values.get("model_type"), fields.strings("architectures") or []
    if family is None:
        by_class = {_language_model(name).lower(): name for name in FAMILIES}
        family = by_class.get(names[0].lower()) if names else None
        if family is None:
            fields.fail("architectures", f"{''.join(names[:1])[:60]!r} is not known; give model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        known = ", ".join(FAMILIES)
        fields.fail(
            "model_type", f"{str(family)[:60]!r} is not an architecture this planner knows; known: {known}"
        )
    if names and names[0].lower() != _language_model(family).lower():
        fields.fail(
            "architectures",
            f"{names[0][:60]!r} is not {_language_model(family)}: another head or other layers, not counted here",
        )
    return family


def _language_model(family: str) -> str:
    """The class that transformers builds: a classifier has another head, a custom class whatever it likes."""
    if family == "gpt2":
        return "GPT2LMHeadModel"
    return "".join(word.capitalize() for word in family.split("_")) + "ForCausalLM"


# --------------------------------------------------------------------------------------- the families


def _foundry(fields: Fields) -> Architecture:
    return foundry_architecture(fields, {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936})


def foundry_architecture(
    fields: Fields, defaults: dict[str, Any], positions: int | None = None
) -> Architecture:
    heads = _size(fields, "num_attention_heads", 16)
    hidden = _size(fields, "hidden_size", 2048)
    normalization = fields.choice("normalization", ("rmsnorm", "layernorm"), "rmsnorm")
    ffn_type = fields.choice("ffn_type", ("swiglu", "standard"), "swiglu")
    learned = fields.choice("position_encoding", ("rope", "learned"), "rope") == "learned"
    max_positions = positions or fields.integer("max_position_embeddings", 2048)
    if learned and ("rope_theta" in fields or "rope_parameters" in fields):
        fields.fail("rope_theta", "has no meaning with position_encoding learned; leave it out")
    bias = fields.flag("attention_bias", False)
    attention = Attention(
        num_heads=heads,
        num_key_value_heads=_key_value_heads(fields, heads, defaults["num_key_value_heads"]),
        head_dim=_head_dim(fields, hidden, heads, defaults["head_dim"], even=not learned),
        qk_norm=fields.flag("qk_norm", True),
        qkv_bias=bias,
        output_bias=bias,
    )
    inner = _size(fields, "intermediate_size", 6144)
    feed_forward = FeedForward(inner, gated=ffn_type == "swiglu", bias=fields.flag("mlp_bias", False))
    return Architecture(
        family="foundry",
        vocab_size=_size(fields, "vocab_size", defaults["vocab_size"]),
        hidden_size=hidden,
        groups=((_size(fields, "num_hidden_layers", 24, LARGEST_COUNT), Block(attention, feed_forward)),),
        tied=fields.flag("tie_word_embeddings", False),
        normalization=normalization,
        learned_positions=max_positions if learned else 0,
        max_positions=max_positions,
    )


def _gpt2(fields: Fields) -> Architecture:
    if fields.flag("add_cross_attention", False):
        fields.fail("add_cross_attention", "true is an encoder-decoder; this planner knows decoders only")
    hidden, heads = fields.integer("n_embd"), fields.integer("n_head")
    if hidden % heads:
        fields.fail("n_head", f"{heads} does not divide n_embd = {hidden}")
    attention = Attention(heads, heads, hidden // heads, qkv_bias=True, output_bias=True)
    feed_forward = FeedForward(fields.integer("n_inner", 4 * hidden), gated=False, bias=True)
    positions = fields.integer("n_positions", fields.integer("n_ctx", 1024))
    return Architecture(
        family="gpt2",
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden,
        groups=((fields.integer("n_layer", maximum=LARGEST_COUNT), Block(attention, feed_forward)),),
        tied=fields.flag("tie_word_embeddings", True),
        normalization="layernorm",
        learned_positions=positions,
        max_positions=positions,
    )


def _llama(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias", False)
    attention = _attention(fields, qkv_bias=bias, output_bias=bias)
    return _decoder(fields, "llama", [attention], mlp_bias=fields.flag("mlp_bias", False))


def _mistral(fields: Fields) -> Architecture:
    # null means no window; a missing key means the class default.
    window = fields.integer("sliding_window", None if "sliding_window" in fields.values else 4096)
    return _decoder(fields, "mistral", [_attention(fields, key_value_heads=8, window=window)])


def _qwen2(fields: Fields) -> Architecture:
    windows = _qwen_windows(fields)
    key_values = fields.integer("num_key_value_heads", 32)
    attentions = [_attention(fields, key_value_heads=key_values, qkv_bias=True, window=w) for w in windows]
    return _decoder(fields, "qwen2", attentions)


def _qwen3(fields: Fields) -> Architecture:
    bias, windows = fields.flag("attention_bias", False), _qwen_windows(fields)
    attentions = [
        _attention(fields, 32, 128, qk_norm=True, qkv_bias=bias, output_bias=bias, window=window)
        for window in windows
    ]
    return _decoder(fields, "qwen3", attentions)


def _gemma(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias", False)
    attention = _attention(fields, 16, 256, qkv_bias=bias, output_bias=bias)
    return _decoder(fields, "gemma", [attention], tied=True)


def _gemma2(fields: Fields) -> Architecture:
    bias, layers = fields.flag("attention_bias", False), _num_layers(fields)
    width = fields.integer("sliding_window", 4096)
    types = fields.strings("layer_types") or [
        "full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)
    ]
    attentions = [
        _attention(fields, 4, 256, qkv_bias=bias, output_bias=bias, window=window)
        for window in _windows(fields, types, width)
    ]
    return _decoder(fields, "gemma2", attentions, tied=True, num_norms=4)


def _mixtral(fields: Fields) -> Architecture:
    attention = _attention(fields, key_value_heads=8, window=fields.integer("sliding_window", None))
    experts = _experts(fields, "num_local_experts", "intermediate_size")
    return _decoder(fields, "mixtral", [attention], [experts])


def _qwen3_moe(fields: Fields) -> Architecture:
    bias = fields.flag("attention_bias", False)
    window = fields.integer("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    attention = _attention(fields, 4, qk_norm=True, qkv_bias=bias, output_bias=bias, window=window)
    experts = _experts(fields, _first(fields, "num_experts", "num_local_experts"), "moe_intermediate_size")
    dense = FeedForward(fields.integer("intermediate_size"))
    dense_layers, step = set(fields.integers("mlp_only_layers")), fields.integer("decoder_sparse_step", 1)
    layers = [
        dense if layer in dense_layers or (layer + 1) % step else experts
        for layer in range(_num_layers(fields))
    ]
    return _decoder(fields, "qwen3_moe", [attention], layers)


def _deepseek_v3(fields: Fields) -> Architecture:
    heads = fields.integer("num_attention_heads")
    attention = LatentAttention(
        num_heads=heads,
        query_rank=fields.integer("q_lora_rank", None if "q_lora_rank" in fields.values else 1536),
        key_value_rank=fields.integer("kv_lora_rank"),
        plain_dim=fields.integer("qk_nope_head_dim"),
        rotary_dim=fields.integer("qk_rope_head_dim"),
        value_dim=fields.integer("v_head_dim"),
        bias=fields.flag("attention_bias", False),
    )
    if attention.rotary_dim % 2:
        fields.fail("qk_rope_head_dim", f"{attention.rotary_dim} is odd; RoPE rotates pairs")
    shared = fields.integer("n_shared_experts", 0 if "n_shared_experts" in fields.values else 1, minimum=0)
    experts = _experts(fields, "n_routed_experts", "moe_intermediate_size", shared, selection_bias=True)
    dense = FeedForward(fields.integer("intermediate_size"))
    num_dense, layers = fields.integer("first_k_dense_replace", 3, minimum=0), _num_layers(fields)
    feed_forwards = [dense if layer < num_dense else experts for layer in range(layers)]
    predictions = fields.integer(
        _first(fields, "num_nextn_predict_layers", "num_mtp_layers"), 1, minimum=0, maximum=64
    )
    return _decoder(fields, "deepseek_v3", [attention], feed_forwards, predictions=predictions)


FAMILIES: dict[str, Callable[[Fields], Architecture]] = {
    "foundry": _foundry,
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v3": _deepseek_v3,
}


# ------------------------------------------------------------------------------------ parts they share


def _decoder(
    fields: Fields,
    family: str,
    attentions: list[Any],
    feed_forwards: list[Any] | None = None,
    *,
    mlp_bias: bool = False,
    tied: bool = False,
    num_norms: int = 2,
    predictions: int = 0,
) -> Architecture:
    """A pre-norm decoder of RMSNorm and gated feed-forward layers; lists of one hold for every layer."""
    layers = _num_layers(fields)
    if feed_forwards is None:
        feed_forwards = [FeedForward(fields.integer("intermediate_size"), bias=mlp_bias)]
    counts: dict[Block, int] = {}
    for layer in range(layers):
        attention = attentions[layer % len(attentions)]
        block = Block(attention, feed_forwards[layer % len(feed_forwards)], num_norms)
        counts[block] = counts.pop(block, 0) + 1  # the last layer's kind comes last
    return Architecture(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.integer("hidden_size"),
        groups=tuple((count, block) for block, count in counts.items()),
        tied=fields.flag("tie_word_embeddings", tied),
        max_positions=fields.integer("max_position_embeddings", None, maximum=2**31),
        num_prediction_layers=predictions,
    )


def _attention(
    fields: Fields, key_value_heads: int | None = None, head_dim: int | None = None, **flags: Any
) -> Attention:
    hidden, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    return Attention(
        num_heads=heads,
        num_key_value_heads=_key_value_heads(fields, heads, key_value_heads),
        head_dim=_head_dim(fields, hidden, heads, head_dim, even=True),
        **flags,
    )


def _experts(
    fields: Fields, count_key: str, size_key: str, shared: int = 0, selection_bias: bool = False
) -> Experts:
    total = fields.integer(count_key, maximum=LARGEST_COUNT)
    active = fields.integer("num_experts_per_tok", maximum=LARGEST_COUNT)
    if active > total:
        fields.fail("num_experts_per_tok", f"{active} is more than {count_key} = {total}")
    size = fields.integer(size_key)
    return Experts(total, active, size, shared * size, selection_bias)


def _num_layers(fields: Fields) -> int:
    return fields.integer("num_hidden_layers", maximum=LARGEST_COUNT)


def _size(fields: Fields, key: str, default: int, maximum: int = 10_000_000) -> int:
    return fields.integer(key, default, maximum=maximum)


def _key_value_heads(fields: Fields, heads: int, default: int | None) -> int:
    if "num_key_value_heads" in fields.values:
        default = None  # null is one for each head, a missing key the class's default
    key_values = fields.integer("num_key_value_heads", default or heads)
    if heads % key_values:
        fields.fail(
            "num_key_value_heads",
            f"{key_values} does not divide num_attention_heads = {heads}; expected a divisor of {heads}",
        )
    return key_values


def _head_dim(fields: Fields, hidden: int, heads: int, default: int | None, even: bool) -> int:
    if "head_dim" in fields.values:
        default = None  # null is the width over the heads
    if "head_dim" not in fields and default is None and hidden % heads:
        fields.fail("num_attention_heads", f"{heads} does not divide hidden_size = {hidden}; give head_dim")
    head_dim = fields.integer("head_dim", default or hidden // heads or 1)
    if even and head_dim % 2:
        fields.fail("head_dim", f"{head_dim} is odd; RoPE rotates pairs, so it must be even")
    return head_dim


def _qwen_windows(fields: Fields) -> list[int | None]:
    """Qwen's windows: off unless switched on, and then in the layers above ``max_window_layers``."""
    width = fields.integer("sliding_window", None if "sliding_window" in fields.values else 4096)
    types = fields.strings("layer_types")
    if not fields.flag("use_sliding_window", False) or width is None:
        return [None]
    if types is None:
        first = fields.integer("max_window_layers", 28, minimum=0)
        types = ["sliding_attention" if i >= first else "full_attention" for i in range(_num_layers(fields))]
    return _windows(fields, types, width)


def _windows(fields: Fields, types: list[str], width: int) -> list[int | None]:
    if len(types) != _num_layers(fields):
        fields.fail("layer_types", f"{len(types)} entries for num_hidden_layers = {_num_layers(fields)}")
    known = {"full_attention": None, "sliding_attention": width}
    for name in types:
        if name not in known:
            fields.fail("layer_types", f"expected {' or '.join(known)}, found {name[:60]!r}")
    return [known[name] for name in types]


def _first(fields: Fields, *keys: str) -> str:
    return next((key for key in keys if key in fields), keys[0])
