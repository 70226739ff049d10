"""Export a finished checkpoint, prove it equal, describe it, and push it when told to."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from transformers.configuration_utils import PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from .. import FoundryConfig
from ..files import sha256_of_file, sync_folder, write_atomically
from ..model.conversion import FAMILIES, blocking_components, export_stock, model_type_of
from ..model.portable_files import (
    TOKENIZER_FILES,
    check_generation_config,
    write_portable_tokenizer,
)
from ..run_record import RECORD_NAME, write_run_record
from ..settings import FoundryError, sought
from ..terminal import console
from .card import model_card
from .lineage import CARD_NAME, Terms, terms_of
from .settings import PublishSettings
from .verification import verify

EXPORT_FORM = 2  # 1 had config.json and tokenizer_config.json for transformers 5 alone
READ = ("config.json", "generation_config.json", *TOKENIZER_FILES)
STOCK_FAMILIES = ("qwen3", "llama")
# What leaves the machine is named, not what stays: a checkpoint folder may hold anything.
FOUNDRY_PATTERNS = (
    "config.json", "generation_config.json", "model.safetensors", "model-*.safetensors",
    "model.safetensors.index.json", "*.py",
)  # fmt: skip


def publish(settings: PublishSettings) -> Path:
    """Write the export once, then its Space and the pushes that were asked for; returns the export's folder.

    Raises:
        FoundryError: no checkpoint there, components that block the format asked for, another export in the
            folder, no parity, or a refused push.
    """
    disable_progress_bar()  # of transformers: five short ones say less than the lines below
    output = Path(settings.output_dir)
    config = _read_config(settings)
    family, why = choose_format(settings, config)
    terms = terms_of(settings)
    refuse_before_work(settings)
    card = model_card(settings, config, family, why, terms)
    content = {
        "family": family,
        "form": EXPORT_FORM,
        "weights": _hashes(Path(settings.model), "*.safetensors"),
    }
    content["rest"] = {
        name: digest for name in READ for name, digest in _hashes(Path(settings.model), name).items()
    }
    if _is_complete(output, content):
        _refresh_card(output, card)
    elif output.exists() and any(output.iterdir()):
        raise FoundryError(
            f"{output}: holds something else, or this model as an earlier release wrote it or before another file of "
            "it changed; remove it or give another --output_dir"
        )
    else:
        with console.status("publish: converting, comparing, loading as a stranger would"):
            _export(settings, output, card, content)
        console.print(f"publish: {output / 'model'}: {why}")
    _share(settings, output, family, terms)
    return output / "model"


def refuse_before_work(settings: PublishSettings) -> None:
    """What would be refused only after the export: a push without a login, a Space that cannot be made."""
    if settings.push_to_hub:
        from .push import require_login

        require_login(str(settings.repo_id))
    if settings.space_repo_id is not None:
        from .space import pinned_versions

        pinned_versions()


def _read_config(settings: PublishSettings) -> PreTrainedConfig:
    folder = Path(settings.model)
    if (folder / "adapter_config.json").is_file():
        raise FoundryError(
            f"{folder}: a LoRA adapter, not a model; merge it into its base and publish that (sft.py and dpo.py merge "
            "theirs into the folder model/ of the run)"
        )
    if not any(folder.glob("*.safetensors")) or not (folder / "config.json").is_file():
        raise FoundryError(
            f"{sought(folder)}: no checkpoint here (config.json, *.safetensors); run the stage that makes it first"
        )
    if not (folder / "tokenizer.json").is_file():
        raise FoundryError(f"{folder}: no tokenizer here (tokenizer.json); copy that of the stage before")
    model_type = model_type_of(folder)
    if model_type == "foundry":
        return _built(FoundryConfig, folder)
    if model_type in STOCK_FAMILIES:
        return _built(FAMILIES[model_type].config_class, folder)
    raise FoundryError(
        f"{folder / 'config.json'}: model_type is {model_type!r}; expected foundry, {' or '.join(STOCK_FAMILIES)}"
    )


def _built(kind: type[PreTrainedConfig], folder: Path) -> PreTrainedConfig:
    try:
        return kind.from_pretrained(folder)
    except (ValueError, TypeError, KeyError) as error:
        raise FoundryError(f"{folder / 'config.json'}: {' '.join(str(error).split())[:300]}") from error


def _hashes(folder: Path, pattern: str) -> dict[str, str]:
    """SHA-256 of the files that match, by their path inside the folder (named templates have a folder of their own)."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}


def _is_complete(output: Path, content: dict[str, Any]) -> bool:
    """Whether ``output`` holds the export of these very weights.

    Raises:
        FoundryError: it holds that export, and a file of it is not as it was written.
    """
    try:
        record = json.loads((output / RECORD_NAME).read_text(encoding="utf-8"))
        is_ours = record["content"] == content
        files = dict(record["files"])
    except NotADirectoryError as error:
        raise FoundryError(f"output_dir: {output} is a file; give a folder") from error
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return False  # no record of an export: what is there is refused as something else
    if not is_ours:
        return False
    for name, expected in files.items():
        path = output / "model" / name
        if not path.is_file() or sha256_of_file(path) != expected:
            raise FoundryError(
                f"{path}: missing or changed since the export; remove {output} and publish again"
            )
    return True


def _refresh_card(output: Path, card: str) -> None:
    """A new evaluation or another description changes the card only."""
    path = output / "model" / CARD_NAME
    if path.is_file() and path.read_text(encoding="utf-8") == card:
        console.print(f"publish: complete already, {path.parent} (nothing to do)")
    else:
        write_atomically(path, card)
        console.print(f"publish: the same weights in {path.parent}; the model card was written anew")


def choose_format(settings: PublishSettings, config: PreTrainedConfig) -> tuple[str, str]:
    """The format and one sentence why.

    Raises:
        FoundryError: the format asked for lacks a component of the model.
    """
    if not isinstance(config, FoundryConfig):
        if settings.format not in ("auto", config.model_type):
            raise FoundryError(
                f"format: {settings.format}, and {settings.model} is a stock {config.model_type} checkpoint; use auto"
            )
        return config.model_type, (
            f"It is a stock `{config.model_type}` checkpoint that needs no remote code. Read back from disk, its fp32 "
            "logits were compared with the trained model's: equal bit for bit."
        )
    blocked = {family: blocking_components(config, family) for family in STOCK_FAMILIES}
    if settings.format in STOCK_FAMILIES and blocked[settings.format]:
        raise FoundryError(
            f"format: {settings.format} has no {', '.join(blocked[settings.format])}; use auto or foundry"
        )
    wanted = STOCK_FAMILIES if settings.format == "auto" else (settings.format,)
    for family in wanted:
        if family in STOCK_FAMILIES and not blocked[family]:
            return family, (
                f"The components are {family}'s, so this is a stock `{family}` checkpoint that needs no "
                "remote code. Before it was written, its fp32 logits were compared with the trained model's: "
                "equal bit for bit."
            )
    reasons = "; ".join(f"{family} has no {', '.join(names)}" for family, names in blocked.items() if names)
    because = f"because {reasons}" if settings.format == "auto" else "because that format was asked for"
    return "foundry", f"It ships its own model code (`trust_remote_code`), {because}."


def _export(settings: PublishSettings, output: Path, card: str, content: dict[str, Any]) -> None:
    """Everything happens in a folder beside the final one, which appears whole or not at all."""
    checkpoint, family = Path(settings.model), content["family"]
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of an interrupted export
    temporary.mkdir(parents=True)
    if family == "foundry":
        _copy_checkpoint(checkpoint, temporary / "model", FoundryConfig.from_pretrained(checkpoint))
    else:
        parity = export_stock(checkpoint, temporary / "model", family)
        console.print(f"publish: stock {family}, logits equal on {parity.num_probe_tokens} tokens")
    verification = verify(checkpoint, temporary / "model", family)
    console.print(
        f"publish: a fresh process without this package loads it as {verification['model_class']}; largest "
        f"difference of a logit {verification['max_logit_difference']:.1g}"
    )
    files = _hashes(temporary / "model", "**/*.*")
    write_atomically(temporary / "model" / CARD_NAME, card)
    write_run_record(
        temporary, {"publish": settings}, content=content, files=files, verification=verification
    )
    if output.exists():
        output.rmdir()  # empty: checked by the caller
    os.replace(temporary, output)
    sync_folder(output.parent)


def _copy_checkpoint(checkpoint: Path, target: Path, config: FoundryConfig) -> None:
    """Weights, configuration, tokenizer and the model code that ``auto_map`` names, with what it imports."""
    check_generation_config(checkpoint, config.vocab_size)
    target.mkdir()
    for path in sorted({path for pattern in FOUNDRY_PATTERNS for path in checkpoint.glob(pattern)}):
        shutil.copyfile(path, target / path.name)
    write_portable_tokenizer(checkpoint, target, config.max_position_embeddings, config.vocab_size)


def _share(settings: PublishSettings, output: Path, family: str, terms: Terms) -> None:
    """The Space's folder, and the uploads that were asked for."""
    from .space import write_space

    revision = None
    if settings.push_to_hub:
        from .push import push_folder

        revision = push_folder(
            output / "model", str(settings.repo_id), settings.private, f"Publish {settings.name}"
        )
        console.print(f"publish: pushed to {settings.repo_id} ({revision[:12]})")
    if settings.space_repo_id is None:
        return
    write_space(settings, output / "space", family, terms.license, revision)
    console.print(f"publish: Space in {output / 'space'}")
    if settings.push_to_hub:
        commit = push_folder(
            output / "space", settings.space_repo_id, settings.private, f"Chat with {settings.name}", "space"
        )
        console.print(f"publish: pushed to Space {settings.space_repo_id} ({commit[:12]})")
