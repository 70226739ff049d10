"""A prepared data folder: written piece by piece, valid only with its ``data.json``, which comes last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..files import sha256_of_file, write_atomically
from ..settings import FoundryError
from .settings import DataSettings
from .shards import TokenShard

MANIFEST_NAME = "data.json"
TOKENIZER_FOLDER = "tokenizer"


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
            f"{folder}: no prepared data here ({MANIFEST_NAME} is missing); run prepare_data.py first"
        )
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise FoundryError(f"{path}: missing, though {MANIFEST_NAME} lists it; prepare the data again")
        if path.stat().st_size != facts["bytes"] or sha256_of_file(path) != facts["sha256"]:
            raise FoundryError(f"{path}: differs from what {MANIFEST_NAME} recorded; prepare the data again")
    prepared = PreparedData(folder, manifest)
    tokenizer = sha256_of_file(prepared.tokenizer_folder / "tokenizer.json")
    for split in ("train", "heldout"):
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
        manifest = json.loads(path.read_text())
        return manifest if manifest["files"].items() and manifest["settings"] else None
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FoundryError(
            f"{path}: not a data manifest; prepare the data again with --overwrite=true"
        ) from error


def is_prepared(folder: Path, settings: DataSettings, identity: dict[str, Any]) -> bool:
    """Whether the folder holds exactly this data; clears it first when it may be overwritten.

    Args:
        identity: what besides the settings decides the content (Python version, hash of the text file).

    Raises:
        FoundryError: it holds other data.
    """
    if settings.overwrite and folder.exists():
        shutil.rmtree(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    wanted = {**relevant_settings(settings), **identity}
    changed = [
        f"{key}: {manifest['settings'].get(key)} -> {value}"
        for key, value in wanted.items()
        if manifest["settings"].get(key) != value
    ]
    if changed:
        raise FoundryError(
            f"{folder}: holds data prepared otherwise ({', '.join(changed)}); "
            "give another --output_dir, or --overwrite=true to replace it"
        )
    load_prepared(folder)
    return True


def relevant_settings(settings: DataSettings) -> dict[str, Any]:
    return {key: value for key, value in asdict(settings).items() if key not in ("output_dir", "overwrite")}


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, atomically; returns the number of lines."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    return len(lines)


def write_manifest(
    folder: Path, settings: DataSettings, identity: dict[str, Any], statistics: dict[str, Any]
) -> None:
    """Seal the folder: sizes and hashes of all its files, then the statistics."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }
    manifest = {
        "settings": {**relevant_settings(settings), **identity}, "statistics": statistics, "files": files,
    }  # fmt: skip
    write_atomically(folder / MANIFEST_NAME, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")


def print_statistics(folder: Path, statistics: dict[str, Any]) -> None:
    """One small table of what was made."""
    table = Table(title=str(folder), title_justify="left", show_edge=False, pad_edge=False)
    for column in ("", "train", "held out"):
        table.add_column(column, justify="left" if not column else "right")
    for name, (train, held_out) in statistics["table"].items():
        table.add_row(name.replace("_", " "), _shown(train), _shown(held_out))
    Console().print(table)


def _shown(value: float) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"
