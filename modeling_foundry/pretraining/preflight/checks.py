"""What is checked before the first step.  Each check answers with a few words or raises one line."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from ...data.sequences.training_data import TrainingData
from ...data.tokenizer.class_check import refuse_another_tokenizer
from ...data.tokens.shards import ShardHeader
from ...files import sha256_of_file
from ...model.configuration_foundry import attention_implementation
from ...model.parameters import assert_built_as_requested
from ...numbers import gib
from ...planning.formulas.parameters import count_parameters
from ...settings import FoundryError
from ...training.checkpoints.checkpoints import sealed_checkpoints
from ..model_settings import ModelSettings
from .forecast import RunForecast


@dataclass(frozen=True)
class Finding:
    """What a check found, in one line."""

    check: str
    words: str
    verdict: Literal["passed", "warning", "failed"] = "passed"


def headers_of(prepared: TrainingData) -> Iterator[tuple[str, ShardHeader]]:
    """Folder and header of every source; of many shards the first, whose words the corpus index repeats."""
    for sources in (prepared.train, prepared.held_out):
        for folder, source in sources.items():
            yield folder, getattr(source, "header", None) or source.shard(0).header  # type: ignore[attr-defined]


def check_rows(model: Any, tokenizer: Any, prepared: TrainingData) -> str:
    """Every id of the tokenizer and of the data has a row in the embedding and in the head."""
    rows = min(
        layer.weight.shape[0] for layer in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    needed = [("the tokenizer", len(tokenizer))]
    needed += [(folder, header.vocab_size) for folder, header in headers_of(prepared)]
    for name, num_ids in needed:
        if rows < num_ids:
            raise FoundryError(
                f"vocab_size: {rows:,} rows cannot hold the {num_ids:,} ids of {name}; give as many"
            )
    return f"{rows:,} for {max(num_ids for _, num_ids in needed):,} ids"


def check_dtype(model: torch.nn.Module, settings: ModelSettings) -> str:
    """Every parameter has the dtype that the recipe names."""
    wanted = getattr(torch, settings.model_dtype)
    for name, parameter in model.named_parameters():
        if parameter.dtype != wanted:
            found = str(parameter.dtype).removeprefix("torch.")
            raise FoundryError(f"model_dtype: {settings.model_dtype} was asked for, but {name} is {found}")
    return settings.model_dtype


def check_tokenizer(tokenizer: Any, config: Any, prepared: TrainingData) -> str:
    """The tokenizer saved with the model is the one that made the data, and both end documents with one id.

    Its file alone does not say so: AutoTokenizer may have made something else of it.
    """
    path = prepared.tokenizer_folder / "tokenizer.json"
    digest = sha256_of_file(path)
    for folder, header in headers_of(prepared):
        if header.tokenizer_sha256 != digest:
            raise FoundryError(
                f"{path}: not the tokenizer that made the tokens of {folder}; tokenize again with it"
            )
        for name, found in (("the tokenizer", tokenizer.eos_token_id), ("the model", config.eos_token_id)):
            if found != header.eos_token_id:
                raise FoundryError(
                    f"eos_token_id: {found} in {name}, but documents in {folder} end with {header.eos_token_id}"
                )
    refuse_another_tokenizer(prepared.tokenizer_folder, tokenizer)
    return f"the data's, {digest[:12]}"


def check_model(model: Any, settings: ModelSettings, forecast: RunForecast) -> str:
    """Shapes follow from the configuration, the configuration from the recipe, the count from the planner."""
    config = model.config
    for entry in fields(settings):
        wanted, found = getattr(settings, entry.name), _built(config, entry.name)
        if entry.name == "attention_backend":
            wanted = attention_implementation(wanted)
        if entry.name != "model_dtype" and wanted is not None and wanted != found:
            raise FoundryError(f"{entry.name}: the recipe says {wanted}, the built model has {found}")
    assert_built_as_requested(model, config)
    counted = sum(parameter.numel() for parameter in model.parameters())
    planned = count_parameters(forecast.architecture).total
    if counted != planned:
        raise FoundryError(
            f"model: {counted:,} parameters, but the planner counts {planned:,}; report this fault"
        )
    return f"as the recipe says, {counted:,} parameters, the planner's count"


def _built(config: Any, name: str) -> Any:
    if name == "rope_theta":
        return (config.rope_parameters or {}).get("rope_theta")
    return getattr(config, "_attn_implementation" if name == "attention_backend" else name, None)


def check_memory(forecast: RunForecast, policy: str) -> str | Finding:
    """The planner's forecast against what the device can give."""
    if forecast.memory is None:
        return "no forecast on a CPU"
    needed, available = forecast.memory.device_bytes, forecast.hardware.memory_bytes
    if available is None or forecast.fits:
        return f"{gib(needed)} forecast, {gib(available or 0)} free"
    words = too_large(forecast)
    if policy == "warn":
        return Finding("memory", words, "warning")
    raise FoundryError(f"{words}, or preflight_memory: warn")


def too_large(forecast: RunForecast) -> str:
    """A micro-batch that does not fit, and one that would."""
    setup, largest = forecast.setup, forecast.largest_micro_batch
    needed = forecast.memory.device_bytes if forecast.memory else 0
    way_out = f"{largest} would fit" if largest else "not even 1 would fit: shard it or recompute activations"
    return (
        f"per_device_train_batch_size: {setup.micro_batch} x {setup.sequence_length:,} tokens need {gib(needed)} a "
        f"GPU by the planner's forecast, {gib(forecast.hardware.memory_bytes or 0)} are free; {way_out}"
    )


def check_disk(arguments: Any, forecast: RunForecast) -> str:
    """Room for the checkpoints to come (one more than are kept, while the newest is written) and the model."""
    per, folder = forecast.checkpoint_bytes, Path(arguments.output_dir)
    to_come = max(0, checkpoints_at_once(arguments) - len(sealed_checkpoints(folder)))
    models = 1 + (arguments.save_initial_model and not (folder / "initial_model").exists())
    needed = to_come * per + models * forecast.weights_bytes
    free = shutil.disk_usage(_existing(folder)).free
    sum_words = f"{to_come} checkpoints of {gib(per)} and {models} x {gib(forecast.weights_bytes)} of weights"
    if free < needed:
        raise FoundryError(
            f"output_dir: {folder} has {gib(free)} free, {sum_words} need {gib(needed)}; free some, lower "
            f"keep_checkpoints ({arguments.keep_checkpoints}) or give another disk"
        )
    return f"{gib(free)} free for {gib(needed)}: {sum_words}"


def checkpoints_at_once(arguments: Any) -> int:
    """Checkpoints on the disk at the fullest moment: those kept and the one being written."""
    if arguments.save_strategy == "no":
        return 0
    steps = arguments.save_steps
    interval = steps if steps >= 1 else max(1, math.ceil(steps * arguments.max_steps))
    saves = math.ceil(arguments.max_steps / interval) if arguments.save_strategy == "steps" else math.inf
    return int(min(arguments.keep_checkpoints + 1, saves))


def check_folder(output_dir: str | Path) -> str:
    """A file can be made in the folder; the folder itself is made where it is missing.

    Raises:
        FoundryError: it cannot.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir) as file:
            file.write(b"\0")
    except OSError as error:
        raise FoundryError(
            f"output_dir: {output_dir} cannot be written to ({error.strerror}); give a folder that can"
        ) from error
    return f"{output_dir} can be written to"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def out_of_memory_advice(forecast: RunForecast) -> str:
    """What to change when a step ran out of memory: the planner's largest micro-batch, and what else takes less."""
    setup, largest = forecast.setup, forecast.largest_micro_batch
    ways = [f"give {largest}, the planner's largest"] if 0 < largest < setup.micro_batch else ["give fewer"]
    ways += ["gradient_checkpointing: true"] * (not setup.checkpointing)
    ways += ["fewer loss_chunk_tokens"]
    return (
        f"per_device_train_batch_size: {setup.micro_batch} x {setup.sequence_length:,} tokens ran out of memory; "
        f"{', or '.join(ways)}"
    )
