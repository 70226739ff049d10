"""The model traces into one graph, and one layer at a time, forward and backward."""

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_evaluation_is_one_graph(build, tokens):
    model = build(num_hidden_layers=1)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = model(tokens, use_cache=False).logits
        torch.testing.assert_close(compiled(tokens, use_cache=False).logits, expected)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [{}, {"position_encoding": "learned", "normalization": "layernorm"}])
def test_training_step_is_one_graph(build, tokens, overrides):
    model = build(num_hidden_layers=1, loss_chunk_tokens=20, **overrides).train()
    model(tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_each_layer_compiled_with_inductor(build, tokens):
    model = build(num_hidden_layers=1).train()
    expected = model(tokens, labels=tokens).loss
    for layer in model.model.layers:
        layer.compile(fullgraph=True)
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


def test_a_compiled_graph_keeps_the_causal_kernel(build, tokens):
    """Without positions from the caller there is no packing to look for, hence no mask of S x S."""
    model = build(num_hidden_layers=1)
    masks = []
    model.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        torch.compile(model, backend="eager")(tokens, use_cache=False)
    assert masks == [None]
