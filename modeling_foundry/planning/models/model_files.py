"""A model as a file describes it: a Hugging Face configuration, or a recipe of this project."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .architecture import Architecture
from .families import FAMILIES, architecture_of, foundry_architecture
from .fields import Fields, PlanError, printable, read_mapping
from .recipe import Recipe, read_recipe, recipe_vocabulary

# A tokenizer's ids are rounded up to this many embedding rows (pretraining/model_settings.py).
ROWS_MULTIPLE = 128
# fmt: off
RECIPE_ARCHITECTURE_KEYS = frozenset((
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "normalization",
    "position_encoding", "ffn_type", "hidden_act", "qk_norm", "attention_bias",
    "mlp_bias", "tie_word_embeddings", "rope_theta", "norm_eps",
    "sequence_length", "loss_chunk_tokens",
))
# fmt: on


@dataclass(frozen=True)
class ModelFile:
    """A model as a file describes it.

    Args:
        recipe: how the file says it is to be trained; None for a plain configuration.
        quantization: its ``quantization_config``, under that key; empty where it has none.
    """

    architecture: Architecture
    source: str
    recipe: Recipe | None = None
    quantization: Mapping[str, Any] = field(default_factory=dict)


def read_model(path: str | Path) -> ModelFile:
    """Read a Hugging Face ``config.json``, a folder that holds one, or a recipe of this project.

    Raises:
        PlanError: one line naming the file, the key and what would be right.
    """
    values, is_json = read_mapping(path)
    fields = Fields(values, str(path))
    if "model_type" in fields or "architectures" in fields:
        quantization = {key: value for key, value in values.items() if key == "quantization_config"}
        return ModelFile(architecture_of(values, str(path)), printable(str(path)), quantization=quantization)
    if is_json and "sequence_length" not in values:
        raise PlanError(f"{path}: model_type: missing; expected one of {', '.join(FAMILIES)}")
    _refuse_near_misses(fields)
    return ModelFile(_recipe_architecture(fields, Path(path)), printable(str(path)), read_recipe(fields))


def _refuse_near_misses(fields: Fields) -> None:
    """A misspelt architecture key would silently take its default."""
    for key in fields.values:
        close = difflib.get_close_matches(key, RECIPE_ARCHITECTURE_KEYS, n=1, cutoff=0.85)
        if close and key not in RECIPE_ARCHITECTURE_KEYS:
            fields.fail(key[:60], f"unknown key; did you mean {close[0]}?")


def _recipe_architecture(fields: Fields, path: Path) -> Architecture:
    # A recipe for data has vocab_size too.
    if not any(key in fields for key in RECIPE_ARCHITECTURE_KEYS - {"vocab_size"}):
        raise PlanError(
            f"{path}: describes no model; expected hidden_size, num_hidden_layers, … or a config.json"
        )
    positions = fields.integer("sequence_length", 2048)
    rows = None if "vocab_size" in fields else recipe_vocabulary(fields, path)
    if rows is not None:
        rows = -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
    defaults = {"num_key_value_heads": None, "head_dim": None, "vocab_size": rows}
    return foundry_architecture(fields, defaults, positions)
