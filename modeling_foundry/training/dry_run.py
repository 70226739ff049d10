"""A run as it would be on other hardware: its banner and forecasts, from a machine without any GPU or data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..configuration_foundry import attention_implementation
from ..planning.forward import resolve_sharding
from ..planning.memory import Sharding
from ..settings import FoundryError
from .banner import banner_rows, print_rows
from .forecast import RunForecast, forecast_run, named_hardware
from .model_settings import ModelSettings, build_model, foundry_config
from .preflight_checks import check_memory
from .token_budget import count_steps


def dry_run(settings: ModelSettings, data: Any, arguments: Any) -> RunForecast:
    """Print what ``forecast_for`` would give: the model has shapes but no values, and no data is read.

    Raises:
        FoundryError: unknown hardware, a model without a size, or more memory than there is.
    """
    hardware = named_hardware(arguments.forecast_for)
    expected = arguments.expected_processes
    if expected not in (None, hardware.num_ranks):
        raise FoundryError(
            f"forecast_for: {arguments.forecast_for} has {hardware.num_ranks} rank(s), "
            f"expected_processes is {expected}; give the same in both"
        )
    count_steps(arguments, data.sequence_length, hardware.num_ranks)
    config = foundry_config(settings, data.sequence_length, num_token_ids(settings, data), {})
    model = build_model(config, replace(settings, attention_backend="sdpa"), "meta")
    muon_on_many = arguments.optimizer == "muon" and hardware.num_ranks > 1
    sharding: Sharding = "ddp" if muon_on_many else resolve_sharding(None, None, hardware.num_ranks)
    forecast = forecast_run(config, arguments, data.sequence_length, hardware, sharding, model.dtype)
    backend = attention_implementation(settings.attention_backend)
    print_rows(
        f"pretrain, a dry run for {arguments.forecast_for}: nothing is trained, nothing was measured",
        banner_rows(model, forecast, arguments, backend, None),
    )
    finding = check_memory(forecast, arguments.preflight_memory)
    if not isinstance(finding, str):
        print_rows("", [("warning", finding.words)])
    return forecast


def num_token_ids(settings: ModelSettings, data: Any) -> int:
    """Ids that the embedding must hold: the tokenizer's where the data is here, else what the recipe says."""
    folder = Path(data.data_dir or "") / "tokenizer"
    if data.data_dir is not None and (folder / "tokenizer.json").is_file():
        return len(AutoTokenizer.from_pretrained(folder))
    if settings.vocab_size is None:
        raise FoundryError(
            f"vocab_size: missing, and {folder} holds no tokenizer to take it from; give it for a dry run"
        )
    return settings.vocab_size
