"""How a recipe's pretrain.yaml says a model is to be trained: the keys that cost time and memory."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .fields import Fields, PlanError, read_mapping


@dataclass(frozen=True)
class Recipe:
    """The keys of a pretraining recipe that the planner reads; defaults are the training script's own.

    Args:
        num_processes: ranks the recipe insists on; None leaves it to the launcher.
        parameter_dtype: float32 (mixed precision keeps masters) or bfloat16.
    """

    sequence_length: int
    micro_batch: int
    accumulation: int
    max_steps: int
    use_cpu: bool
    bf16: bool
    parameter_dtype: str
    loss_chunk_tokens: int
    activation_checkpointing: bool
    compile_layers: bool
    optimizer: str
    num_processes: int | None
    max_tokens: int | None = None
    global_batch_tokens: int | None = None

    def accumulation_of(self, micro_batch: int, num_ranks: int, sequence_length: int) -> int:
        """Forward passes of a step: as given, or what ``global_batch_tokens`` leaves.

        Raises:
            PlanError: the global batch is no multiple of what the ranks read at once.
        """
        smallest = micro_batch * num_ranks * sequence_length
        if self.global_batch_tokens is None:
            return self.accumulation
        if self.global_batch_tokens % smallest:
            raise PlanError(
                f"global_batch_tokens: {self.global_batch_tokens:,} is no multiple of {smallest:,} (micro-batch "
                f"{micro_batch:,} x {num_ranks:,} rank(s) x {sequence_length:,} tokens)"
            )
        return self.global_batch_tokens // smallest

    def tokens_per_step(self, num_ranks: int) -> int:
        """Micro-batch x accumulation x ranks x sequence length."""
        return self.micro_batch * self.accumulation * num_ranks * self.sequence_length


def read_recipe(fields: Fields) -> Recipe:
    """The training keys of a recipe."""
    use_cpu = fields.flag("use_cpu", False)
    checkpointing = fields.flag("gradient_checkpointing", False) or fields.flag(
        "activation_checkpointing", False
    )
    return Recipe(
        sequence_length=fields.integer("sequence_length", 2048),
        micro_batch=fields.integer("per_device_train_batch_size", 8),
        accumulation=fields.integer("gradient_accumulation_steps", 1),
        max_steps=fields.integer("max_steps", 1000, maximum=10**9),
        use_cpu=use_cpu,
        bf16=fields.flag("bf16", not use_cpu),
        parameter_dtype=fields.choice("model_dtype", ("float32", "bfloat16"), "float32"),
        loss_chunk_tokens=fields.integer("loss_chunk_tokens", 8192),
        activation_checkpointing=checkpointing,
        compile_layers=fields.flag("compile_layers", False),
        optimizer=fields.choice("optimizer", ("adamw", "muon"), "adamw"),
        num_processes=fields.integer("expected_processes", None, maximum=1_000_000),
        max_tokens=fields.integer("max_tokens", None, maximum=10**18),
        global_batch_tokens=fields.integer("global_batch_tokens", None, maximum=10**12),
    )


def recipe_vocabulary(fields: Fields, path: Path) -> int:
    """Ids of the tokenizer that a recipe without ``vocab_size`` trains with.

    Looked for where the training script finds it: the prepared data folder, then the recipe's own keys, then
    the size its data.yaml asks for.

    Raises:
        PlanError: none of them says.
    """
    prepared = _prepared_vocabulary(fields)
    if prepared is not None:
        return prepared
    if "text_file_vocab_size" in fields:
        return fields.integer("text_file_vocab_size")
    data = path.with_name("data.yaml")
    if data.is_file():
        values = Fields(read_mapping(data)[0], str(data))
        if "vocab_size" in values:
            return values.integer("vocab_size")
    raise PlanError(
        f"{path}: vocab_size: missing, and neither the data folder nor {data.name} names one; give it"
    )


def _prepared_vocabulary(fields: Fields) -> int | None:
    folder = fields.values.get("data_dir")
    if not isinstance(folder, str):
        return None
    tokenizer = Path(folder) / "tokenizer" / "tokenizer.json"
    if not os.path.isfile(tokenizer):  # a name too long is no prepared folder
        return None
    try:
        content: dict[str, Any] = json.loads(tokenizer.read_text(encoding="utf-8"))
        ids = set(content["model"]["vocab"].values()) | {token["id"] for token in content["added_tokens"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(
            f"{tokenizer}: not a tokenizer file ({type(error).__name__}); prepare the data again"
        ) from error
    return max(ids) + 1
