"""Attention backends: what each promises, and that none stands in silently for another."""

import contextlib

import pytest
import torch
from torch.nn.attention import SDPBackend
from transformers.utils import is_flash_attn_2_available

from modeling_foundry.model import attention_backends
from modeling_foundry.model.attention_backends import cudnn_attention, cudnn_mask

requires_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
def test_backends_agree_with_eager(build, tokens, padding):
    model = build()
    real = padding.bool()
    logits = {}
    for backend in ("eager", "sdpa", "flex_attention"):
        model.set_attn_implementation(backend)
        with torch.no_grad():
            logits[backend] = model(tokens, attention_mask=padding).logits[real]
    torch.testing.assert_close(logits["sdpa"], logits["eager"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits["flex_attention"], logits["eager"], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the refusal is for machines without CUDA")
def test_cudnn_refuses_the_cpu(build, tokens):
    model = build()
    model.set_attn_implementation("cudnn_sdpa")
    with pytest.raises(
        ValueError, match=r"cudnn_sdpa needs bfloat16 or float16 on a CUDA device, not .* on cpu"
    ):
        model(tokens)


def test_cudnn_refuses_fp32():
    class Attention(torch.nn.Module):
        num_key_value_groups, is_causal = 1, True

    query = torch.zeros(1, 2, 4, 8, device="meta")
    with pytest.raises(ValueError, match=r"not torch.float32 on meta"):
        cudnn_attention(Attention(), query, query, query, None)


def test_an_unknown_backend_is_refused(tiny):
    from modeling_foundry import FoundryForCausalLM

    with pytest.raises(ValueError, match="flash_attention_9"):
        FoundryForCausalLM._from_config(tiny(), attn_implementation="flash_attention_9")


@pytest.mark.skipif(is_flash_attn_2_available(), reason="flash-attn is installed")
def test_flash_attention_without_its_package_is_refused(tiny):
    from modeling_foundry import FoundryForCausalLM

    with pytest.raises(ImportError, match="FlashAttention2"):
        FoundryForCausalLM._from_config(tiny(), attn_implementation="flash_attention_2")


@pytest.fixture
def cudnn_on_cpu(monkeypatch):
    """PyTorch's CPU kernel in place of cuDNN's; yields the kernels that were asked for."""
    asked = []

    @contextlib.contextmanager
    def any_kernel(kernel):
        asked.append(kernel)
        yield

    monkeypatch.setattr(attention_backends, "sdpa_kernel", any_kernel)
    monkeypatch.setattr(attention_backends, "refuse_without_cudnn", lambda query: None)
    return asked


def test_cudnn_arithmetic(build, tokens, padding, cudnn_on_cpu):
    """Everything but the kernel itself: masks, grouped heads, caches, layout."""
    model = build().to(torch.bfloat16)
    real = padding.bool()
    results = []
    for backend in ("sdpa", "cudnn_sdpa"):
        model.set_attn_implementation(backend)
        prompt = {"attention_mask": padding[:2], "max_new_tokens": 4, "do_sample": False}
        with torch.no_grad():
            results.append(
                (
                    model(tokens).logits,
                    model(tokens, attention_mask=padding).logits[real],
                    model.generate(tokens[:2], **prompt),
                    model.generate(
                        tokens[:1], max_new_tokens=4, do_sample=False, cache_implementation="static"
                    ),
                )
            )
    assert set(cudnn_on_cpu) == {SDPBackend.CUDNN_ATTENTION}
    for ours, theirs in zip(*reversed(results), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_cudnn_mask_leaves_no_query_blind(padding):
    mask = cudnn_mask(3, 17, 17, attention_mask=padding.bool(), allow_is_causal_skip=False)
    assert mask.dtype == torch.bool
    assert mask.any(-1).all()
    causal = torch.tril(torch.ones(17, 17, dtype=torch.bool))
    expected = (causal & padding.bool()[:, None, :])[:, None]
    real = padding.bool()[:, None, :, None]
    assert torch.equal(mask & real, expected & real)
    assert cudnn_mask(3, 17, 17, attention_mask=None, allow_is_causal_skip=True) is None


@pytest.mark.gpu
@requires_cuda
def test_cudnn_agrees_with_eager_on_cuda(build, tokens, padding):
    model = build(head_dim=64).to("cuda")
    tokens, padding = tokens.to("cuda"), padding.to("cuda")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(tokens, attention_mask=padding).logits[padding.bool()]
        model.to(torch.bfloat16).set_attn_implementation("cudnn_sdpa")
        logits = model(tokens, attention_mask=padding).logits[padding.bool()]
    assert (logits - expected).norm() / expected.norm() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cudnn_takes_fp32_parameters_under_autocast(build, tokens):
    """The flagship recipe: fp32 parameters, bf16 autocast."""
    model = build().cuda()
    model.set_attn_implementation("cudnn_sdpa")
    with torch.autocast("cuda", torch.bfloat16):
        loss = model.train()(input_ids=tokens.cuda(), labels=tokens.cuda()).loss
    loss.backward()
    assert torch.isfinite(loss)
