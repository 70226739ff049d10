"""Positions of tokens: where packed documents begin, what a learned table holds, whose logits are wanted."""

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.utils.import_utils import is_tracing


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
