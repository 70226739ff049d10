"""Export a finished checkpoint, prove it equal, describe it, and push it when told to."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi
from rich.console import Console

from .. import FoundryConfig
from ..conversion import blocking_components, export_stock
from ..files import sha256_of_file, write_atomically
from ..settings import FoundryError
from .card import model_card
from .settings import PublishSettings

RECORD_NAME = "export.json"
STOCK_FAMILIES = ("qwen3", "llama")
NOT_PUBLISHED = ("training_args.bin", "optimizer.pt", "scheduler.pt")
console = Console(highlight=False, soft_wrap=True)


def publish(settings: PublishSettings) -> Path:
    """Write the export folder once, and push it if ``push_to_hub`` says so.

    Raises:
        FoundryError: no checkpoint there, components that block the format asked for, another export in the
            folder, or a refused push.
    """
    output = Path(settings.output_dir)
    record = _record(settings)
    existing = _read_record(output)
    if existing == record:
        console.print(f"publish: exported already, {output} (nothing to do)")
    elif existing is not None or (output.exists() and any(output.iterdir())):
        raise FoundryError(f"{output}: holds another export; remove it or give another --output_dir")
    else:
        _export(settings, output, record)
    if settings.push_to_hub:
        _push(settings, output)
    return output


def _record(settings: PublishSettings) -> dict[str, Any]:
    """What decides the content of the export."""
    weights = sorted(Path(settings.model).glob("*.safetensors"))
    if not weights:
        raise FoundryError(f"{settings.model}: no model here (*.safetensors); run the stages before this one first")
    kept = {key: value for key, value in asdict(settings).items() if key not in ("push_to_hub", "private")}
    return {"settings": kept, "weights": {path.name: sha256_of_file(path) for path in weights}}


def _read_record(output: Path) -> dict[str, Any] | None:
    path = output / RECORD_NAME
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FoundryError(f"{path}: not valid JSON; remove the folder and publish again") from error


def choose_format(settings: PublishSettings, config: FoundryConfig) -> tuple[str, str]:
    """The format and one sentence why.

    Raises:
        FoundryError: the format asked for lacks a component of the model.
    """
    blocked = {family: blocking_components(config, family) for family in STOCK_FAMILIES}
    if settings.format in STOCK_FAMILIES and blocked[settings.format]:
        raise FoundryError(
            f"format: {settings.format} has no {', '.join(blocked[settings.format])}; use auto or foundry"
        )
    wanted = STOCK_FAMILIES if settings.format == "auto" else (settings.format,)
    for family in wanted:
        if family in STOCK_FAMILIES and not blocked[family]:
            return family, (
                f"The components are {family}'s, so this is a stock `{family}` checkpoint: no remote code, and "
                "vLLM, llama.cpp or SGLang can load it. Its fp32 logits were equal to the trained model's bit for bit."
            )
    reasons = "; ".join(f"{family} has no {', '.join(names)}" for family, names in blocked.items() if names)
    return "foundry", f"It ships its own model code (`trust_remote_code`), because {reasons or 'that was asked for'}."


def _export(settings: PublishSettings, output: Path, record: dict[str, Any]) -> None:
    config = FoundryConfig.from_pretrained(settings.model)
    family, why = choose_format(settings, config)
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    if family == "foundry":
        shutil.copytree(settings.model, temporary, ignore=shutil.ignore_patterns(*NOT_PUBLISHED))
    else:
        parity = export_stock(settings.model, temporary, family)
        console.print(f"publish: stock {family}, logits equal on {parity.num_probe_tokens} tokens")
    write_atomically(temporary / "README.md", model_card(settings, config, family, why))
    write_atomically(temporary / RECORD_NAME, json.dumps(record, indent=1) + "\n")
    if output.exists():
        output.rmdir()  # empty: checked by the caller
    os.replace(temporary, output)
    console.print(f"publish: {output} ({why})")


def _push(settings: PublishSettings, output: Path) -> None:
    api = HfApi()
    try:
        api.create_repo(settings.repo_id, private=settings.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=settings.repo_id, folder_path=output, ignore_patterns=[RECORD_NAME],
            commit_message=f"Publish {settings.name}",
        )  # fmt: skip
    except (OSError, ValueError, httpx.HTTPError) as error:  # the Hub's errors and the network's
        raise FoundryError(f"push to {settings.repo_id}: {' '.join(str(error).split())[:300]}") from error
    console.print(f"publish: pushed to {settings.repo_id} ({commit.oid[:12]})")
