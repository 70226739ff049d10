"""A public chat or preference dataset as files that SFT and DPO read: checked, shuffled, split, sealed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ...files import sha256_of_file, sync_folder, write_atomically
from ...settings import FoundryError, sought
from ..summary import length_percentiles, print_statistics, side_by_side
from ..tokens.prepared import MANIFEST_NAME, differences
from .datasets import DATASETS, ChatDataset
from .selection import Collected, Entry, collect, counts_in_words, select
from .settings import ChatSettings
from .source import Source, open_source

# Part of what a folder is known by: raise it when the same settings come to give other bytes.
CHAT_VERSION = 1
CHAT_MANIFEST = "chat.json"
# What an unfinished folder is going to hold; gone when chat.json is there.
PLAN_NAME = "chat.preparing.json"
PREFIX = {"sft": "sft", "preference": "dpo"}
SPLITS = ("train", "heldout")
OWN_FILES = [f"{prefix}_{split}.jsonl" for prefix in PREFIX.values() for split in SPLITS]


def prepare_chat(settings: ChatSettings) -> Path:
    """Make the folder the settings describe; do nothing when it is complete already.

    Raises:
        FoundryError: the source cannot be read, too many rows are malformed, or the folder holds other data.
    """
    folder, dataset = Path(settings.output_dir), DATASETS[settings.dataset]
    content = content_of(settings)
    if not settings.overwrite and is_complete(folder, content):
        print(f"chat: complete already, {folder} (nothing to do)")
        return folder
    refuse_foreign_files(folder, settings.overwrite)
    source = open_source(dataset, settings)
    with _writable(folder), tempfile.TemporaryFile(dir=folder) as spool:
        collected = collect(source, dataset, settings, spool)
        sides = select(collected.entries, settings.seed, settings.max_samples, settings.validation_fraction)
        start_folder(folder, content)
        facts = [
            _write_side(folder / f"{PREFIX[dataset.kind]}_{split}.jsonl", side, spool)
            for split, side in zip(SPLITS, sides, strict=True)
        ]
    notes = _notes(source, dataset, collected, num_used=sum(map(len, sides)))
    statistics = {"table": side_by_side(*facts), "notes": notes}
    seal_folder(folder, content, _record(source, dataset, collected), statistics)
    print_statistics(folder, statistics)
    return folder


def content_of(settings: ChatSettings) -> dict[str, Any]:
    """All that decides what the folder holds; where it is, and where a local file lies, do not.

    Raises:
        FoundryError: the local file cannot be read.
    """
    names = "dataset revision max_samples validation_fraction seed system_prompt language".split()
    content = {"preparation": CHAT_VERSION} | {name: getattr(settings, name) for name in names}
    if settings.file is None:
        return content
    try:
        return content | {"file_sha256": sha256_of_file(settings.file)}
    except OSError as error:
        raise FoundryError(f"{sought(settings.file)}: cannot read the dataset ({error.strerror})") from error


def _write_side(path: Path, entries: Sequence[Entry], spool: IO[bytes]) -> dict[str, float]:
    """Copy one side's lines out of the spool, atomically; returns counts and lengths in characters.

    A side without samples has no file: training would rather miss it than read nothing.
    """
    turns, answers = 0, []
    if entries:
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as file:
            for entry in entries:
                spool.seek(entry.start)
                line = spool.read(entry.num_bytes)
                file.write(line)
                lengths = _answer_lengths(json.loads(line))
                turns += len(lengths)
                answers += lengths
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    return {
        "samples": len(entries),
        "conversations that open differently": len({entry.opening for entry in entries}),
        "answers": turns,
        **length_percentiles("answer characters", answers or [0]),
    }


def _answer_lengths(sample: dict[str, Any]) -> list[int]:
    """Characters of what is learned: each assistant turn, or the chosen and the rejected answer."""
    messages = sample.get("messages") or sample["chosen"] + sample["rejected"]
    return [len(message["content"]) for message in messages if message["role"] == "assistant"]


def _notes(source: Source, dataset: ChatDataset, collected: Collected, num_used: int) -> list[str]:
    malformed = f"malformed: {collected.num_malformed} of {collected.num_rows:,} rows"
    if collected.first_malformed is not None:
        number, first = collected.first_malformed
        malformed += f" ({counts_in_words(collected.malformed)}); first: row {number}, {first}"
    left_out = counts_in_words(collected.left_out)
    return [
        f"source: {', '.join(str(fact) for fact in source.facts.values())}; "
        f"licence of {dataset.repository}: {dataset.licence}",
        malformed,
        f"left out: {collected.num_duplicates} exact duplicates, {len(collected.entries) - num_used} beyond "
        f"max_samples{', ' + left_out if left_out else ''}",
    ]


# ----------------------------------------------------------------------------------------------- folder


def _record(source: Source, dataset: ChatDataset, collected: Collected) -> dict[str, Any]:
    first = collected.first_malformed
    return {
        "source": source.facts | {"kind": dataset.kind, "licence": dataset.licence},
        "rows": collected.num_rows,
        "malformed": dict(collected.malformed),
        "first_malformed": None if first is None else {"row": first[0], "reason": first[1]},
        "left_out": dict(collected.left_out),
        "duplicates": collected.num_duplicates,
        "different_samples": len(collected.entries),
    }


def is_complete(folder: Path, content: dict[str, Any]) -> bool:
    """Whether the folder holds exactly these samples, whole.

    Raises:
        FoundryError: it holds others, or a damaged file.
    """
    path = folder / CHAT_MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found, files = dict(manifest["settings"]), dict(manifest["files"])
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (ValueError, KeyError, TypeError) as error:
        raise FoundryError(
            f"{path}: not a record of `chat`; prepare the data again with --overwrite=true"
        ) from error
    if changed := differences(found, content):
        raise FoundryError(
            f"{folder}: holds data prepared otherwise ({changed}); "
            "give another --output_dir, or --overwrite=true to replace it"
        )
    for name, digest in files.items():
        if not (folder / name).is_file() or sha256_of_file(folder / name) != digest:
            raise FoundryError(
                f"{folder / name}: missing or not what {CHAT_MANIFEST} recorded; "
                "prepare the data again with --overwrite=true"
            )
    return True


def refuse_foreign_files(folder: Path, overwrite: bool) -> None:
    """What an interrupted `chat` left may be replaced; files of others only when told to.

    Raises:
        FoundryError: the folder is another command's, or holds a file that `chat` would replace.
    """
    if (folder / MANIFEST_NAME).exists():
        raise FoundryError(f"{folder}: holds what `prepare` made; give another --output_dir")
    present = [name for name in OWN_FILES if (folder / name).exists()]
    if present and not overwrite and not (folder / PLAN_NAME).exists():
        raise FoundryError(
            f"{folder / present[0]}: is there already, without {CHAT_MANIFEST}; "
            "give another --output_dir, or --overwrite=true to replace it"
        )


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """The folder made where it is missing, and taken away again when bad input leaves it empty."""
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except FoundryError:
        if is_new:
            folder.rmdir()
        raise
    except OSError as error:
        raise FoundryError(
            f"{folder}: cannot write there ({error.strerror}); give another --output_dir"
        ) from error


def start_folder(folder: Path, content: dict[str, Any]) -> None:
    """From here on the folder's old samples are gone and the new ones on their way."""
    write_atomically(folder / PLAN_NAME, json.dumps(content, indent=1) + "\n")
    for name in (CHAT_MANIFEST, *OWN_FILES):
        (folder / name).unlink(missing_ok=True)


def seal_folder(
    folder: Path, content: dict[str, Any], record: dict[str, Any], statistics: dict[str, Any]
) -> None:
    """Write ``chat.json``: what was asked for, where it came from, counts, and the hash of every file."""
    files = {name: sha256_of_file(folder / name) for name in OWN_FILES if (folder / name).is_file()}
    manifest = {"settings": content, **record, "statistics": statistics, "files": files}
    write_atomically(folder / CHAT_MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    (folder / PLAN_NAME).unlink()
