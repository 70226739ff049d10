"""The weights of a checkpoint into a model that is not wrapped yet: safetensors, every one of them."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ...settings import FoundryError


def load_weights(model: nn.Module, folder: Path) -> None:
    """The weights of a checkpoint into a model that is not wrapped yet, every one of them.

    Raises:
        FoundryError: a tensor is missing or unknown.
    """
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [SAFE_WEIGHTS_NAME]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    try:
        state = {name: tensor for file in names for name, tensor in load_file(folder / file).items()}
    except (OSError, SafetensorError) as error:
        raise FoundryError(
            f"{folder}: its weights cannot be read ({error}); restore the checkpoint"
        ) from error
    result = model.load_state_dict(state, strict=False)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    wrong = [*result.unexpected_keys, *(name for name in result.missing_keys if name not in tied)]
    if wrong:
        raise FoundryError(
            f"{folder}: not the weights of this model ({wrong[0]}); give the settings of the run"
        )
