"""Arguments that the three trainers share."""

from __future__ import annotations

from typing import Literal

from ..model.configuration_foundry import attention_implementation
from ..settings import FoundryError

AttentionBackend = Literal[
    "auto", "eager", "sdpa", "cudnn_sdpa", "cudnn", "flash_attention_2", "flash_attn_2",
    "flash_attention_3", "flash_attn_3", "flex_attention", "flex",
]  # fmt: skip
GPU_BACKENDS = ("cudnn_sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


def refuse_backend_without_gpu(backend: str, device_type: str) -> None:
    """Some backends train on a GPU only, and say so late and in many lines.

    Raises:
        FoundryError: ``backend`` is one of them and ``device_type`` is not ``cuda``.
    """
    if attention_implementation(backend) in GPU_BACKENDS and device_type != "cuda":
        raise FoundryError(
            f"attention_backend: {backend} trains on a CUDA device only and this run is on the {device_type}; "
            f"choose sdpa or eager"
        )
