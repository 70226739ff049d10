"""A prepared data folder: written piece by piece, valid only with its ``data.json``, which comes last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import sha256_of_file, write_atomically
from ...settings import FoundryError, sought
from .shards import TokenShard

MANIFEST_NAME = "data.json"
# What an unfinished folder is going to hold; gone when data.json is there.
PLAN_NAME = "preparing.json"
TOKENIZER_FOLDER = "tokenizer"
SPLITS = ("train", "heldout")
OWN_FILES = [
    *(f"{split}.ds{suffix}" for split in SPLITS for suffix in ("", ".index", ".json")),
    *(f"{kind}_{split}.jsonl" for kind in ("sft", "dpo") for split in SPLITS),
    "heldout.jsonl",
]


@dataclass(frozen=True)
class PreparedData:
    """A complete, verified data folder."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Changes when any file of the folder does."""
        return sha256_of_file(self.folder / MANIFEST_NAME)[:16]

    @property
    def tokenizer_folder(self) -> Path:
        """Where AutoTokenizer loads from."""
        return self.folder / TOKENIZER_FOLDER

    def shard(self, split: str) -> TokenShard:
        """``train`` or ``heldout``, opened."""
        return TokenShard.open(self.folder / f"{split}.ds")


def load_prepared(folder: str | Path) -> PreparedData:
    """Open a prepared folder after checking each file against the manifest.

    Raises:
        FoundryError: it is not complete, or a file differs from what was written.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise FoundryError(
            f"{sought(folder)}: no prepared data here ({MANIFEST_NAME} is missing); run prepare_data.py first"
        )
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise FoundryError(f"{path}: missing, though {MANIFEST_NAME} lists it; prepare the data again")
        if path.stat().st_size != facts["bytes"] or sha256_of_file(path) != facts["sha256"]:
            raise FoundryError(f"{path}: differs from what {MANIFEST_NAME} recorded; prepare the data again")
    prepared = PreparedData(folder, manifest)
    tokenizer = sha256_of_file(prepared.tokenizer_folder / "tokenizer.json")
    for split in SPLITS:
        if prepared.shard(split).header.tokenizer_sha256 != tokenizer:
            raise FoundryError(
                f"{folder / split}.ds: was made with another tokenizer than {TOKENIZER_FOLDER}/"
            )
    return prepared


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """``data.json`` as a dictionary; None where there is none.

    Raises:
        FoundryError: it is there but not readable as a manifest.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        files = {
            name: (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()
        }
        if not files or not isinstance(manifest["settings"], dict):
            raise ValueError("no files or no settings")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FoundryError(
            f"{path}: not a data manifest; prepare the data again with --overwrite=true"
        ) from error
    return manifest


def differences(found: dict[str, Any], content: dict[str, Any]) -> str:
    """What a folder was made with and what is asked for now, where they differ; empty where they do not."""
    return ", ".join(
        f"{key}: {found.get(key)} -> {content.get(key)}"
        for key in {**found, **content}
        if found.get(key) != content.get(key)
    )


def is_prepared(folder: Path, content: dict[str, Any]) -> bool:
    """Whether the folder holds exactly this data, whole.

    Args:
        content: all that decides what is in it (settings, Python version, hash of the text file).

    Raises:
        FoundryError: it holds other data, or a damaged file.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    found = manifest["settings"]
    if changed := differences(found, content):
        raise FoundryError(
            f"{folder}: holds data prepared otherwise ({changed}); "
            "give another --output_dir, or --overwrite=true to replace it"
        )
    load_prepared(folder)
    return True


def start_folder(folder: Path, content: dict[str, Any]) -> bool:
    """Make ready to write; whether an interrupted preparation of the same content is to be gone on with.

    What another preparation left unfinished is removed.  Files that are not ours are never touched.
    """
    plan = folder / PLAN_NAME
    wanted = json.dumps(content, indent=1, sort_keys=True) + "\n"
    if plan.is_file() and plan.read_text(encoding="utf-8") == wanted:
        return True
    clear_folder(folder)
    write_atomically(plan, wanted)
    return False


def clear_folder(folder: Path) -> None:
    """Remove the files this module writes, ``data.json`` first, and nothing else."""
    for name in (MANIFEST_NAME, PLAN_NAME, *OWN_FILES):
        (folder / name).unlink(missing_ok=True)
        for leftover in folder.glob(f".{name}.*tmp"):
            leftover.unlink()
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically; returns the number of lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    return len(lines)


def seal_folder(folder: Path, content: dict[str, Any], statistics: dict[str, Any]) -> None:
    """Write ``data.json``: what was asked for, the statistics, size and hash of every file."""
    files = {
        str(path.relative_to(folder).as_posix()): {
            "bytes": path.stat().st_size,
            "sha256": sha256_of_file(path),
        }
        for path in _own_files(folder)
    }
    manifest = {"settings": content, "statistics": statistics, "files": files}
    write_atomically(folder / MANIFEST_NAME, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    (folder / PLAN_NAME).unlink(missing_ok=True)


def _own_files(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in OWN_FILES if (folder / name).is_file())
    yield from sorted(path for path in (folder / TOKENIZER_FOLDER).rglob("*") if path.is_file())
