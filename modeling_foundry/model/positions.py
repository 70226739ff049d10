"""Positions of tokens: rotations, where packed documents begin, what a learned table holds, whose logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.utils.import_utils import is_tracing

from .configuration_foundry import FoundryConfig


class FoundryRotaryEmbedding(nn.Module):
    """Cosines and sines of rotary positions (Su et al. 2021, arXiv:2104.09864), in the two-halves layout."""

    inv_freq: Tensor

    def __init__(self, config: FoundryConfig):
        super().__init__()
        self.max_seq_len_cached = config.max_position_embeddings
        self.original_max_seq_len = config.max_position_embeddings
        self.config = config
        rope: Any = config.rope_parameters
        self.rope_type = rope["rope_type"]
        compute: Callable = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        """Move the frequencies but keep them fp32: in bf16, position 2,048 is off by radians.

        DeepSpeed casts the whole module with ``module.bfloat16()``.
        """
        exact = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, buffer in exact.items():
            cast = getattr(self, name)
            if cast.dtype != buffer.dtype:
                setattr(self, name, buffer.to(cast.device))
        return self

    @staticmethod
    def compute_default_rope_parameters(config: FoundryConfig, device=None, **_) -> tuple[Tensor, float]:
        """Inverse frequencies (D/2) and the scale of cosines and sines, which is 1 for plain RoPE."""
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float, device=device) / config.head_dim
        rope: Any = config.rope_parameters
        return 1.0 / (rope["rope_theta"] ** exponents), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) positions to cosines and sines (B, S, D) in the dtype of ``hidden_states``."""
        inv_freq = self.inv_freq.to(device=hidden_states.device, dtype=torch.float)
        angles = position_ids[..., None].float() * inv_freq
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """(…, D) to (…, D): the second half negated, then the first."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


def apply_rotary(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, heads, S, D) by positions given as (B, S, D)."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return heads * cos + rotate_half(heads) * sin


def next_positions(inputs_embeds: Tensor, past_key_values: Cache | None) -> Tensor:
    """Positions (1, S) that follow what the cache has seen."""
    num_seen = past_key_values.get_seq_length() if past_key_values is not None else 0
    return (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + num_seen).unsqueeze(0)


def is_packed(position_ids: Tensor | None, attention_mask: Tensor | dict | None) -> bool:
    """Whether positions (B, S) start again between two tokens that are not padding.

    A traced or compiled graph cannot branch on values and answers no; without cache and mask, as in training,
    transformers builds the block-diagonal mask there by itself.
    """
    if position_ids is None or isinstance(attention_mask, dict) or position_ids.shape[-1] < 2:
        return False
    if is_tracing(position_ids) or (attention_mask is not None and attention_mask.ndim != 2):
        return False
    restarts = position_ids[..., 1:] <= position_ids[..., :-1]
    if attention_mask is not None:
        real = attention_mask[:, -position_ids.shape[-1] :].to(restarts.device).bool()
        restarts = restarts & real[:, 1:] & real[:, :-1]
    return bool(restarts.any())


def refuse_leaks(attention_mask: Tensor | None, past_key_values: Cache | None) -> None:
    """Raise ValueError where the documents of a packed row would see each other."""
    if past_key_values is not None:
        raise ValueError("position_ids start again inside a row (packed documents): use no past_key_values")
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError(
            "position_ids start again inside a row (packed documents): give no attention_mask with padding, "
            "but let the padding be one more document"
        )


def refuse_positions_beyond_table(position_ids: Tensor, num_positions: int) -> None:
    """Raise ValueError for positions a learned table does not have (on CUDA, without a sync, by length)."""
    longest = position_ids.shape[-1]
    if position_ids.device.type == "cpu" and not is_tracing(position_ids):
        longest = int(position_ids.max()) + 1
    if longest > num_positions:
        raise ValueError(
            f"position {longest - 1} is beyond the {num_positions} learned positions of this model"
        )


def slice_positions(hidden_states: Tensor, keep: int | Tensor) -> Tensor:
    """The positions of (B, S, H) whose logits are wanted.

    Args:
        keep: the last so many (0: all), or a tensor: positions (P) for all rows, positions (B, P) row by row,
            or a boolean mask (B, S), which gives (number of true, H).
    """
    if isinstance(keep, int):
        return hidden_states[:, slice(-keep, None)]
    if keep.ndim == 2 and keep.dtype == torch.bool:
        return hidden_states[keep]
    if keep.ndim == 2:
        return torch.take_along_dim(hidden_states, keep[..., None], dim=1)
    return hidden_states[:, keep]
