"""The linear cross-entropy: equal to the plain one, and never more than one chunk of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.loss.loss_utils import ForCausalLMLoss

from modeling_foundry.model.losses import cross_entropy, linear_cross_entropy, shift_labels_left

HIDDEN, VOCABULARY = 12, 50


def probe(num_tokens=23, dtype=torch.float32, ignored=(), hidden_size=HIDDEN, vocabulary=VOCABULARY):
    """Hidden states, weight, bias (all needing gradients) and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, hidden_size, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(vocabulary, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (num_tokens,), generator=generator)
    labels[list(ignored)] = -100
    return hidden, weight, bias, labels


def gradients(loss, *tensors):
    return torch.autograd.grad(loss * 3.0, tensors)


@given(
    num_tokens=st.integers(1, 40),
    chunk_tokens=st.integers(1, 50),
    z_loss_weight=st.sampled_from([0.0, 1e-2]),
    with_bias=st.booleans(),
    num_items=st.sampled_from([None, 7, "tensor"]),
    data=st.data(),
)
@settings(max_examples=40)
def test_equals_the_plain_loss(num_tokens, chunk_tokens, z_loss_weight, with_bias, num_items, data):
    ignored = data.draw(st.sets(st.integers(0, num_tokens - 1), max_size=num_tokens - 1))
    hidden, weight, bias, labels = probe(num_tokens, ignored=ignored)
    bias = bias if with_bias else None
    num_items = torch.tensor(11) if num_items == "tensor" else num_items
    options = {"num_items_in_batch": num_items, "z_loss_weight": z_loss_weight}
    plain = cross_entropy(torch.nn.functional.linear(hidden, weight, bias), labels, **options)
    chunked = linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=chunk_tokens, **options)
    torch.testing.assert_close(chunked, plain, rtol=1e-6, atol=1e-6)
    tensors = [tensor for tensor in (hidden, weight, bias) if tensor is not None]
    for ours, theirs in zip(gradients(chunked, *tensors), gradients(plain, *tensors), strict=True):
        assert (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("num_items", [None, 7, torch.tensor(7)], ids=["mean", "number", "tensor"])
def test_equals_transformers_own_loss(num_items):
    hidden, weight, _, labels = probe(ignored=(0, 5))
    logits = (hidden @ weight.T).view(1, -1, VOCABULARY)
    expected = ForCausalLMLoss(logits, labels[None], VOCABULARY, num_items_in_batch=num_items)
    shifted = shift_labels_left(labels[None])
    loss = linear_cross_entropy(hidden[None], weight, shifted, num_items_in_batch=num_items, chunk_tokens=4)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("z_loss_weight", [0.0, 1e-2])
def test_fp64_gradcheck(z_loss_weight):
    hidden, weight, bias, labels = probe(4, torch.float64, ignored=(2,), hidden_size=3, vocabulary=5)

    def loss(hidden, weight, bias):
        return linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=3, z_loss_weight=z_loss_weight)

    assert torch.autograd.gradcheck(loss, (hidden, weight, bias))


def test_z_loss_is_palms_term():
    hidden, weight, _, labels = probe()
    plain = linear_cross_entropy(hidden, weight, labels)
    with_z = linear_cross_entropy(hidden, weight, labels, z_loss_weight=1e-2)
    expected = 1e-2 * (hidden @ weight.T).logsumexp(-1).square().mean()
    torch.testing.assert_close(with_z - plain, expected, rtol=1e-4, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records the most elements any operation's output had."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


class LiveStorages(TorchDispatchMode):
    """Records how many storages of ``num_elements`` lived at one time."""

    def __init__(self, num_elements):
        super().__init__()
        self.num_elements, self.most, self._seen = num_elements, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() == self.num_elements:
                reference = StorageWeakRef(tensor.untyped_storage())
                self._seen[reference.cdata] = reference
        self._seen = {cdata: each for cdata, each in self._seen.items() if not each.expired()}
        self.most = max(self.most, len(self._seen))
        return result


def test_one_chunk_of_logits_lives_at_a_time():
    """What the planner counts: a chunk's gradient is gone before the next chunk's logits are made."""
    vocabulary, chunk_tokens = 400, 8
    hidden, weight = torch.randn(64, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    labels = torch.randint(0, vocabulary, (64,))
    with LiveStorages(chunk_tokens * vocabulary) as live:
        linear_cross_entropy(hidden, weight, labels, chunk_tokens=chunk_tokens).backward()
    assert live.most == 1


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    vocabulary, chunk_tokens, num_tokens = 400, 8, 64
    hidden = torch.randn(num_tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    labels = torch.randint(0, vocabulary, (num_tokens,))
    with LargestTensor() as chunked:
        linear_cross_entropy(hidden, weight, labels, chunk_tokens=chunk_tokens, z_loss_weight=1e-3).backward()
    with LargestTensor() as plain:
        cross_entropy(hidden @ weight.T, labels).backward()
    assert chunked.num_elements == chunk_tokens * vocabulary
    assert plain.num_elements == num_tokens * vocabulary


def test_frozen_parts_get_no_gradient_and_the_rest_the_same():
    hidden, weight, bias, labels = probe()
    expected = gradients(linear_cross_entropy(hidden, weight, labels, bias), hidden, weight, bias)
    for frozen in range(3):
        tensors = [tensor.detach() for tensor in (hidden, weight, bias)]
        for i, tensor in enumerate(tensors):
            tensor.requires_grad_(i != frozen)
        (linear_cross_entropy(tensors[0], tensors[1], labels, tensors[2]) * 3.0).backward()
        assert tensors[frozen].grad is None
        for i in {0, 1, 2} - {frozen}:
            assert torch.equal(tensors[i].grad, expected[i])


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, bias, labels = probe()
    expected = linear_cross_entropy(hidden, weight, labels, bias)
    with torch.no_grad(), LargestTensor() as seen:
        loss = linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())
    assert seen.num_elements <= max(weight.numel(), 4 * VOCABULARY)


def test_bf16_gradients_are_as_good_as_the_plain_ones():
    exact_hidden, exact_weight, _, labels = probe(64)
    exact = gradients(linear_cross_entropy(exact_hidden, exact_weight, labels), exact_hidden, exact_weight)
    hidden, weight = (t.detach().bfloat16().requires_grad_() for t in (exact_hidden, exact_weight))
    chunked = gradients(linear_cross_entropy(hidden, weight, labels, chunk_tokens=5), hidden, weight)
    plain = gradients(cross_entropy(hidden @ weight.T, labels), hidden, weight)
    for ours, theirs, truth in zip(chunked, plain, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        error = (ours.float() - truth).norm() / truth.norm()
        assert error < max(1.25 * (theirs.float() - truth).norm() / truth.norm(), 0.01)


def test_autocast_runs_the_products_in_bf16_and_keeps_fp32_gradients():
    hidden, weight, bias, labels = probe()
    expected = linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), labels, bias.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, labels, bias)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(loss, hidden, weight, bias))


@pytest.mark.parametrize("num_items", [None, 1_000_000])
def test_fp16_gradients_under_a_loss_scale_are_as_good_as_the_plain_ones(num_items):
    """GradScaler starts at 65,536, which fp16 cannot hold, for gradients that are too small without it."""
    hidden, weight, _, labels = probe(256, vocabulary=2000)
    exact = gradients(
        linear_cross_entropy(hidden, weight, labels, num_items_in_batch=num_items), hidden, weight
    )
    with torch.autocast("cpu", dtype=torch.float16):
        half = hidden.detach().half().requires_grad_()
        loss = linear_cross_entropy(half, weight, labels, num_items_in_batch=num_items, chunk_tokens=100)
    scaled = torch.autograd.grad(loss * 65536.0, (half, weight))
    for ours, truth in zip(scaled, exact, strict=True):
        assert (ours.double() / 65536 * 3 - truth).norm() < 2e-3 * truth.norm()


@pytest.mark.parametrize("loss", [cross_entropy, linear_cross_entropy])
def test_data_parallel_gives_the_count_as_a_matrix(loss):
    hidden, weight, _, labels = probe()
    inputs = (hidden @ weight.T,) if loss is cross_entropy else (hidden, weight)
    expected = loss(*inputs, labels, num_items_in_batch=7)
    assert torch.equal(loss(*inputs, labels, num_items_in_batch=torch.tensor([[7]])), expected)


def test_no_label_that_counts_is_not_a_number_as_in_pytorch():
    hidden, weight, _, labels = probe(4, ignored=(0, 1, 2, 3))
    assert linear_cross_entropy(hidden, weight, labels).isnan()
    assert cross_entropy(hidden @ weight.T, labels).isnan()
    assert linear_cross_entropy(hidden, weight, labels, num_items_in_batch=5) == 0


def test_extreme_logits_stay_finite():
    hidden, weight, _, labels = probe()
    loss = linear_cross_entropy(hidden * 1e4, weight, labels)
    assert loss.isfinite()
    assert gradients(loss, weight)[0].isfinite().all()


@pytest.mark.parametrize("chunk_tokens", [1, 5, 64])
def test_z_loss_and_its_gradient_are_those_of_autograd_on_plain_logits(chunk_tokens):
    """PaLM's weight 1e-4, in fp64: loss, the part that is z-loss, and every gradient."""
    hidden, weight, bias, labels = probe(23, torch.float64, ignored=(3, 4))
    logits = (hidden @ weight.T + bias)[labels != -100]
    cross_entropies = torch.nn.functional.cross_entropy(logits, labels[labels != -100])
    expected_z = 1e-4 * logits.logsumexp(-1).square().mean()
    options = {"z_loss_weight": 1e-4, "return_z_loss": True}
    chunked = linear_cross_entropy(hidden, weight, labels, bias, chunk_tokens=chunk_tokens, **options)
    plain = cross_entropy(hidden @ weight.T + bias, labels, **options)
    theirs = gradients(cross_entropies + expected_z, hidden, weight, bias)
    for loss, z_loss in (chunked, plain):
        torch.testing.assert_close(z_loss, expected_z.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(loss - z_loss, cross_entropies, rtol=1e-12, atol=0)
        assert not z_loss.requires_grad
        ours = gradients(loss, hidden, weight, bias)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-14)  # 1 / tokens is rounded to fp32


def test_the_model_gives_the_z_loss_in_training_only():
    from modeling_foundry import FoundryConfig, FoundryForCausalLM

    torch.manual_seed(0)
    config = FoundryConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32, z_loss_weight=1e-2,
    )  # fmt: skip
    model, ids = FoundryForCausalLM(config), torch.randint(0, 64, (2, 16))
    chunked, whole = (model.train()(ids, labels=ids, skip_logits=skip) for skip in (True, False))
    evaluated = model.eval()(ids, labels=ids)
    assert evaluated.z_loss is None
    assert "z_loss" not in evaluated
    for output in (chunked, whole):
        torch.testing.assert_close(output.loss - output.z_loss, evaluated.loss, rtol=1e-5, atol=0)
    normalizers = whole.logits[:, :-1].logsumexp(-1)
    torch.testing.assert_close(whole.z_loss, 1e-2 * normalizers.square().mean(), rtol=1e-5, atol=0)
