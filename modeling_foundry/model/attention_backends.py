"""Attention kernels of ours beside transformers' own (sdpa, flash_attention_2, flex_attention).

All have transformers' signature: query (B, A, S, D), key and value (B, K, T, D) in; output (B, S, A, D) and,
where the kernel has them, weights out.  B batch, A query heads, K key-value heads, S queries, T keys.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention written out: query (B, A, S, D), key and value (B, K, T, D), additive mask (B, 1, S, T)."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def cudnn_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """PyTorch's scaled dot product attention by cuDNN's kernel, 1.7 times FlashAttention-2 on an H200.

    A step of one query token (decoding) has no such kernel and goes to PyTorch's own choice.

    Raises:
        ValueError: off CUDA, or for a dtype other than bfloat16 and float16: no other kernel stands in.
    """
    refuse_without_cudnn(query)
    if query.shape[2] == 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal
        )
    causal = attention_mask is None and (module.is_causal if is_causal is None else is_causal)
    if causal and key.shape[2] > query.shape[2]:  # prefill of a static cache: the rest is still empty
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            dropout_p=dropout,
            scale=scaling,
            is_causal=causal,
            enable_gqa=module.num_key_value_groups > 1,
        )
    return output.transpose(1, 2).contiguous(), None


def refuse_without_cudnn(query: Tensor) -> None:
    """Raise ValueError for a device or dtype that cuDNN's attention does not serve.

    Under autocast PyTorch's attention casts its arguments itself, so autocast's dtype counts.
    """
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if query.device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(
            "attention backend cudnn_sdpa needs bfloat16 or float16 on a CUDA device, not "
            f"{query.dtype} on {query.device.type}: choose sdpa"
        )


def cudnn_mask(*args, **kwargs) -> Tensor | None:
    """sdpa's boolean mask (B, 1, S, T), in which a padded query, that may see nothing, sees everything.

    Nobody reads such a row; fused kernels may turn it into NaN, which the next layer would spread.
    """
    mask = sdpa_mask(*args, **kwargs)
    return mask if mask is None else mask | ~mask.any(-1, keepdim=True)


AttentionInterface.register("cudnn_sdpa", cudnn_attention)
AttentionMaskInterface.register("cudnn_sdpa", cudnn_mask)
