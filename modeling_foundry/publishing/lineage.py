"""Where published weights come from: back through the run records, to a pretraining of ours or to others' weights.

A licence and a base model are facts about that start.  Neither is assumed where the way back ends before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..files import model_hash
from ..model.conversion import model_type_of
from ..model.portable_files import read_object
from ..run_record import RECORD_NAME
from ..settings import FoundryError
from .hub_names import check_license, check_repository
from .settings import UNPUBLISHED, PublishSettings

CARD_NAME = "README.md"
OWN_LICENSE = "mit"  # of weights that were trained from scratch here, where none is given
# The Hub's cache names a repository's folder so; a snapshot of it is what training was given.
CACHED = re.compile(r"models--([^/]+)--([^/]+)")


@dataclass(frozen=True)
class Origin:
    """The start of a model, as far as the records lead.

    Attributes:
        base: folder of the weights that no stage of ours trained; None where one did, from scratch.
        lost: why the records do not lead to the start, or None.
        card: front matter of the nearest model card on the way.
        card_path: where that card is.
        base_id: what is known to be the start's name on the Hub.
    """

    base: Path | None
    lost: str | None = None
    card: dict[str, Any] = field(default_factory=dict)
    card_path: Path | None = None
    base_id: str | None = None


@dataclass(frozen=True)
class Terms:
    """What a card says of licence and base.

    Attributes:
        extra: ``license_name`` and ``license_link`` of a licence that is ``other``.
        base_words: the base for a reader, in Markdown; None for weights trained from scratch.
        base_license: licence that the base's own card names.
    """

    license: str
    base_model: str | None = None
    extra: dict[str, str] = field(default_factory=dict)
    base_words: str | None = None
    base_license: str | None = None


def terms_of(settings: PublishSettings) -> Terms:
    """Licence and base model, given or recorded.

    Raises:
        FoundryError: one is neither, or a recorded one is none that the Hub takes.
    """
    origin = trace(Path(settings.model))
    license, extra = _license(settings, origin)
    base_model = _base_model(settings, origin)
    named = origin.card.get("license")
    words = None
    if base_model is not None:
        words = f"[{base_model}](https://huggingface.co/{base_model})"
    elif settings.base_model == UNPUBLISHED:
        words = "a model that is not on the Hub"
    return Terms(license, base_model, extra, words, named if isinstance(named, str) and words else None)


def trace(model: Path) -> Origin:
    """Follow the run records from a model folder to its start.

    Raises:
        FoundryError: a record or a card on the way is damaged.
    """
    folder, card = model, dict[str, Any]()
    card_path: Path | None = None
    seen: set[Path] = set()
    while True:
        seen.add(folder.resolve())
        if not card and (card := _front_matter(folder / CARD_NAME)):
            card_path = folder / CARD_NAME
        record_path, record = _record_of(folder)
        if record_path is None:
            return _without_record(folder, model, card, card_path)
        if "data" in record["settings"]:
            return Origin(None, None, card, card_path)
        named, published_as = _source(record["settings"])
        if published_as is not None and folder != model:
            return Origin(folder, None, card, card_path, published_as)
        before = _found(named, record_path)
        if before is None or before.resolve() in seen:
            lost = f"{record_path} says it started from {named}, where no model is"
            return Origin(Path(named), lost, card, card_path, _cached_id(Path(named)))
        hashed = (record.get("inputs") or {}).get("model")
        if hashed is not None and hashed != model_hash(before):
            return Origin(before, f"{before} holds other weights than {record_path} started from")
        folder = before


def _record_of(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The record of what made a model: a run's is beside its model and checkpoints, an import's inside."""
    places = [folder / RECORD_NAME]
    if folder.resolve().name in ("model", "initial_model") or folder.name.startswith("checkpoint-"):
        places.append(folder.resolve().parent / RECORD_NAME)
    for path in places:
        if path.is_file():
            record = read_object(path)
            settings = record.get("settings")
            if isinstance(settings, dict) and ("data" in settings or _source(settings)[0]):
                return path, record
    return None, {}


def _found(named: str, record_path: Path) -> Path | None:
    """The folder that a record names, from here or from a folder above the record, where the run was started."""
    for start in (Path(), *record_path.resolve().parents):
        if any((start / named).glob("*.safetensors")):
            return start / named
    return None


def _source(settings: dict[str, Any]) -> tuple[str, str | None]:
    """The folder that a stage started from, empty where there is none; the name under which an export was pushed."""
    for stage, key in (("alignment", "model"), ("publish", "model"), ("import", "checkpoint")):
        found = settings.get(stage)
        if isinstance(found, dict):
            return str(found.get(key) or ""), found.get("repo_id") if found.get("push_to_hub") else None
    return "", None


def _without_record(folder: Path, model: Path, card: dict[str, Any], card_path: Path | None) -> Origin:
    """The end of the way: a model that no run of ours is known to have made."""
    if read_object(folder / "config.json").get("model_type") == "foundry":
        return Origin(folder, f"{folder} has no {RECORD_NAME} of the run that made it", card, card_path)
    base_id = _cached_id(folder)
    if folder == model:  # fine-tuned elsewhere: its own card names its base
        named = card.get("base_model")
        base_id = named if isinstance(named, str) else None
    return Origin(folder, None, card, card_path, base_id)


def _cached_id(folder: Path) -> str | None:
    found = CACHED.search(str(folder.absolute()))
    return None if found is None else f"{found[1]}/{found[2]}"


def _license(settings: PublishSettings, origin: Origin) -> tuple[str, dict[str, str]]:
    if settings.license is not None:
        return settings.license, {}
    named = origin.card.get("license")
    if isinstance(named, str):
        try:
            check_license(named)
        except ValueError as error:
            raise FoundryError(f"{origin.card_path}: license: {error}; give license here") from error
        names = ("license_name", "license_link")
        return named, {name: str(origin.card[name]) for name in names if origin.card.get(name)}
    if origin.base is None and origin.lost is None:
        return OWN_LICENSE, {}
    where = origin.lost or f"{origin.base} was not trained here, and no card ({CARD_NAME}) there names one"
    raise FoundryError(f"license: missing; {where}; give the base model's (license: apache-2.0)")


def _base_model(settings: PublishSettings, origin: Origin) -> str | None:
    if settings.base_model == UNPUBLISHED:
        return None
    found = settings.base_model or origin.base_id
    if found is None and _is_of_others(settings, origin):
        where = (
            origin.lost or f"{settings.model} was fine-tuned from {origin.base}, which was not trained here"
        )
        raise FoundryError(
            f"base_model: missing; {where}; give its name on the Hub (base_model: Qwen/Qwen3-0.6B), or "
            f"base_model: {UNPUBLISHED}"
        )
    if found is not None and settings.base_model is None:
        try:
            check_repository(found)
        except ValueError as error:
            raise FoundryError(f"base_model: {error}; give base_model") from error
    return found


def _is_of_others(settings: PublishSettings, origin: Origin) -> bool:
    """Whether the weights began as others'; where the way back is lost, a stock configuration says so."""
    if origin.lost is not None:
        return model_type_of(settings.model) != "foundry"
    return origin.base is not None


def _front_matter(path: Path) -> dict[str, Any]:
    """The metadata at the head of a model card; empty where there is no card or no metadata."""
    if not path.is_file():
        return {}
    parts = re.split(
        r"^---\s*$", path.read_text(encoding="utf-8", errors="replace"), maxsplit=2, flags=re.MULTILINE
    )
    if len(parts) < 3 or parts[0].strip("\ufeff \n"):
        return {}
    try:
        content = yaml.safe_load(parts[1])
    except yaml.YAMLError as error:
        raise FoundryError(
            f"{path}: its metadata is not YAML ({' '.join(str(error).split())[:200]})"
        ) from error
    return content if isinstance(content, dict) else {}
