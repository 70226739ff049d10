"""The planner's activation bytes of a layer, eager or compiled by itself, equal what autograd really saves there."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_foundry.planning import architecture_of
from modeling_foundry.planning.formulas.activations import Bytes, layer_bytes_per_token
from tests.planning.conftest import REAL, SMALL, build_model

BATCH, SEQUENCE = 3, 17  # 51 tokens: no even size below can be mistaken for them
SIZES = {"fp32": Bytes(4, 4, False), "autocast": Bytes(4, 2, False), "bf16": Bytes(2, 2, False)}


def saved_bytes(values: dict, precision: str) -> int:
    """Bytes of the distinct tensors the last layer saves for its backward pass.

    Left out: the weights, their autocast copies, and the rotary tables, which all layers share.
    """
    import torch

    model = build_model(values, attention="sdpa").train()
    if precision == "bf16":
        model = model.bfloat16()
    layer = model.model.layers[-1]
    inside, saved = False, {}

    def enter(*_):
        nonlocal inside
        inside = True

    def leave(*_):
        nonlocal inside
        inside = False

    def keep(tensor):
        if inside:
            saved[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave)
    tokens = torch.randint(0, values["vocab_size"], (BATCH, SEQUENCE))
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model(input_ids=tokens, use_cache=False)
    shapes = {tuple(p.shape) for p in layer.parameters()} | {tuple(p.shape[::-1]) for p in layer.parameters()}
    rotary = {
        (1, 1, SEQUENCE, values.get("head_dim") or values["hidden_size"] // values["num_attention_heads"])
    }
    return sum(t.untyped_storage().nbytes() for t in saved.values() if tuple(t.shape) not in shapes | rotary)


def planned_bytes(values: dict, precision: str) -> float:
    architecture = architecture_of(values)
    block = architecture.last_block
    per_token = layer_bytes_per_token(block, architecture, SIZES[precision])
    if precision == "bf16" and architecture.normalization == "layernorm":
        # A CPU keeps LayerNorm's mean and deviation in bf16, CUDA (and the planner) in fp32.
        heads = block.attention.num_heads + block.attention.num_key_value_heads
        per_token -= 4 * (2 + heads * block.attention.qk_norm)
    return BATCH * SEQUENCE * per_token


@pytest.mark.parametrize("precision", SIZES)
@pytest.mark.parametrize("family", ["foundry", "llama", "mistral", "qwen2", "qwen3"])
def test_equal_to_what_autograd_saves(family, precision):
    assert planned_bytes(SMALL[family], precision) == saved_bytes(SMALL[family], precision)


mixes = st.fixed_dictionaries(
    {
        "model_type": st.just("foundry"),
        "vocab_size": st.just(64),
        "hidden_size": st.sampled_from([16, 40, 64]),
        "intermediate_size": st.sampled_from([24, 56, 128]),
        "num_hidden_layers": st.just(1),
        "num_attention_heads": st.sampled_from([2, 4]),
        "num_key_value_heads": st.sampled_from([1, 2]),
        "head_dim": st.sampled_from([4, 8]),
        "max_position_embeddings": st.just(32),
        "normalization": st.sampled_from(["rmsnorm", "layernorm"]),
        "position_encoding": st.sampled_from(["rope", "learned"]),
        "ffn_type": st.sampled_from(["swiglu", "standard"]),
        "qk_norm": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
    }
)


@settings(max_examples=30)
@given(values=mixes, precision=st.sampled_from(list(SIZES)))
def test_equal_for_any_mix_of_components(values, precision):
    assert planned_bytes(values, precision) == saved_bytes(values, precision)


def test_compiled_flagship_layer_by_hand():
    """bf16: two residuals, two norm outputs, Q and K before and after their norm, V, output, FFN."""
    flagship = architecture_of(REAL["foundry"])
    query, key, hidden, inner = 2048, 1024, 2048, 6144
    values = 2 * hidden + 2 * hidden + 2 * (query + key) + key + query + 3 * inner
    per_token = layer_bytes_per_token(flagship.last_block, flagship, Bytes(2, 2, compiled=True))
    assert per_token == 2 * values + 4 * 16  # and the log-sum-exp of 16 heads in fp32


@settings(max_examples=60)
@given(values=mixes)
def test_compiling_never_keeps_more(values):
    architecture = architecture_of(values)
    for residual, compute in ((4, 4), (4, 2), (2, 2)):
        eager, compiled = (
            layer_bytes_per_token(architecture.last_block, architecture, Bytes(residual, compute, flag))
            for flag in (False, True)
        )
        assert compiled <= eager


COMPILED_SIZES = {
    "autocast": Bytes(4, 2, True, by_layer=True),
    "bf16": Bytes(2, 2, True, by_layer=True),
    "fp8": Bytes(2, 2, True, fp8=True, by_layer=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", COMPILED_SIZES)
def test_a_compiled_layer_saves_what_is_planned(precision):
    """The compiler's choice of what to recompute is the same on a CPU; its fp8 products are emulated there."""
    import torch

    values = SMALL["foundry"]
    architecture, model = architecture_of(values), build_model(values, attention="sdpa").train()
    dtype = torch.float32 if precision == "autocast" else torch.bfloat16
    model.to(dtype)
    if precision == "fp8":
        float8 = pytest.importorskip("torchao.float8", reason="torchao is not installed")
        float8.convert_to_float8_training(model.model.layers, config=float8.Float8LinearConfig(emulate=True))
    layer = model.model.layers[-1]
    layer.compile()
    states = torch.randn(BATCH, SEQUENCE, values["hidden_size"], dtype=dtype, requires_grad=True)
    rotary = model.model.rotary_emb(states, torch.arange(SEQUENCE).expand(BATCH, -1))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        layer(states, position_embeddings=rotary, attention_mask=None)
    weights = {tuple(p.shape) for p in layer.parameters()} | {
        tuple(p.shape[::-1]) for p in layer.parameters()
    }
    tables = {table.untyped_storage().data_ptr() for table in rotary}
    activations = [
        tensor
        for address, tensor in saved.items()
        if address not in parameters | tables and tuple(tensor.shape) not in weights
    ]
    norms = [tensor for tensor in activations if tensor.ndim == 0 or tensor.shape[-1] == 1]  # scales, rsqrt
    size = sum(t.untyped_storage().nbytes() for t in activations) - sum(t.nbytes for t in norms)
    planned = layer_bytes_per_token(architecture.last_block, architecture, COMPILED_SIZES[precision])
    assert size == BATCH * SEQUENCE * planned
