"""From a folder, a Hub cache snapshot or an fsspec URL to a manifest."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from rich.table import Table
from tqdm.auto import tqdm

from ...settings import FoundryError
from ...terminal import console
from .documents import count_rows
from .file_bytes import is_url, size_and_sha256_of
from .file_kinds import compression_of, format_of
from .manifest import SHA256, Manifest, SourceFile, read_manifest, write_manifest
from .settings import ManifestSettings

SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "heldout": "validation", "test": "test",
}  # fmt: skip


def make_manifest(settings: ManifestSettings) -> Manifest:
    """Scan, sample, hold files out, and write; the same scan again changes nothing.

    Raises:
        FoundryError: nothing to tokenize there, or ``output`` is another manifest.
    """
    root = root_of(settings)
    files, left_out = scan(root, settings.split, settings.include)
    output = Path(settings.output)
    files = [file for file in files if Path(root, file.path) != output.resolve()]  # written there before
    if settings.max_files is not None:
        files = files[: settings.max_files]
    files = hold_out(files, settings.held_out_files)
    files = estimate_rows(root, files, settings.sample_files)
    if settings.sha256:
        files = hashed(root, files)
    manifest = Manifest(root, tuple(files))
    if output.exists() and not settings.overwrite:
        if read_manifest(output) != manifest:
            raise FoundryError(
                f"{output}: holds another manifest; give another --output, or --overwrite=true to replace it"
            )
        console.print(f"manifest: complete already, {output} (nothing to do)")
        return manifest
    write_manifest(output, manifest)
    _print(output, manifest, left_out)
    return manifest


def root_of(settings: ManifestSettings) -> str:
    """The folder or URL to scan; for ``hub_name`` the snapshot in the local Hub cache.

    Raises:
        FoundryError: both or neither given, or no snapshot of that revision here.
    """
    if (settings.source is None) == (settings.hub_name is None):
        raise FoundryError("manifest: give exactly one of source and hub_name")
    if settings.source is not None:
        source = settings.source.removeprefix("file://")
        return source if is_url(source) else str(Path(source).resolve())
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(
            str(settings.hub_name), repo_type="dataset", revision=settings.revision, local_files_only=True
        )
    except Exception as error:
        raise FoundryError(
            f"hub_name: {settings.hub_name} is not in the local Hub cache ({type(error).__name__}); fetch it with "
            f"`hf download --repo-type dataset {settings.hub_name}` first"
        ) from error


def scan(
    root: str, split: str | None = None, include: str | None = None
) -> tuple[list[SourceFile], Counter[str]]:
    """Every file under ``root`` that holds documents, in natural order, and what was left out by suffix.

    Args:
        include: shell pattern of the relative path; ``*`` matches folders too.
        split: of all files; None takes it from a folder or file name (``train/chunk1/...``), else ``train``.

    Raises:
        FoundryError: the root cannot be listed or holds no such file, or a link leads nowhere.
    """
    if is_url(root) and "::" in root:
        raise FoundryError(f"{root}: a chain of URLs is not read here; unpack it and give the folder")
    try:
        system, path = fsspec.url_to_fs(root) if is_url(root) else (LocalFileSystem(), root)
        entries = system.find(path, detail=True)
    except (OSError, ValueError, ImportError) as error:
        raise FoundryError(f"{root}: cannot be listed ({' '.join(str(error).split())})") from error
    if not entries and not system.exists(path):
        raise FoundryError(f"{root}: no such folder")
    files, left_out = [], Counter[str]()
    for name in sorted(entries, key=_natural):
        relative = PurePosixPath(name).relative_to(PurePosixPath(path.rstrip("/") or "/"))
        if any(part.startswith((".", "_")) for part in relative.parts):
            left_out["hidden"] += 1
            continue
        if include is not None and not fnmatchcase(str(relative), include):
            left_out["not included"] += 1
            continue
        if _is_linked_folder(entries[name]):  # not followed: it may lead back
            left_out["link to a folder"] += 1
            continue
        kind, compression = format_of(relative), compression_of(relative.name)
        if kind is None:
            left_out[relative.suffix or "no suffix"] += 1
            continue
        if _not_utf8(name):
            raise FoundryError(f"{name!a}: its name is not UTF-8; rename it")
        if entries[name].get("islink") and not Path(name).exists():
            raise FoundryError(f"{name}: a link to nothing; mend or remove it")
        files.append(
            SourceFile(
                split or split_of(relative), str(relative), _size(system, name, entries[name]), kind, compression,
                sha256=_hub_sha256(entries[name]),
            )
        )  # fmt: skip
    if not files:
        seen = f"; left out: {dict(left_out)}" if left_out else ""
        raise FoundryError(
            f"{root}: no .jsonl, .parquet or .txt files here (plain, .gz or .zst){seen}; "
            "give the folder that holds them"
        )
    return files, left_out


def split_of(path: PurePosixPath) -> str:
    """``train``, ``validation`` or ``test``: the first folder, or word of the file's name, that says so."""
    for part in path.parts[:-1]:
        if part.lower() in SPLITS:
            return SPLITS[part.lower()]
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "train")


def hold_out(files: list[SourceFile], number: int) -> list[SourceFile]:
    """Move ``number`` train files to validation: those whose path has the smallest hash, on any machine the same.

    Raises:
        FoundryError: that would leave no file to train on.
    """
    train = [file.path for file in files if file.split == "train"]
    if number and number >= len(train):
        raise FoundryError(
            f"held_out_files: expected fewer than the {len(train)} train files, found {number}"
        )
    chosen = set(sorted(train, key=lambda path: hashlib.sha256(path.encode()).hexdigest())[:number])
    return [replace(file, split="validation") if file.path in chosen else file for file in files]


def estimate_rows(root: str, files: list[SourceFile], sample_files: int) -> list[SourceFile]:
    """Rows of each file: counted in ``sample_files`` of each kind, scaled by bytes in the others."""
    rates: dict[tuple[str, str], tuple[int, int]] = {}
    counted: dict[str, int] = {}
    kinds: dict[tuple[str, str], list[SourceFile]] = {}
    for file in files:
        kinds.setdefault((file.format, file.compression), []).append(file)
    for kind, members in kinds.items():
        step = max(1, len(members) // max(1, sample_files))
        for file in tqdm(
            members[::step][:sample_files], desc=f"sample {kind[0]}", unit="file", disable=len(members) < 50
        ):
            counted[file.path] = rows = count_rows(root, file)
            seen_rows, seen_bytes = rates.get(kind, (0, 0))
            rates[kind] = seen_rows + rows, seen_bytes + file.num_bytes

    def rows_of(file: SourceFile) -> int | None:
        if file.format == "text":
            return 1
        rows, num_bytes = rates.get((file.format, file.compression), (0, 0))
        return counted.get(file.path, round(rows * file.num_bytes / num_bytes) if num_bytes else None)

    return [replace(file, estimated_rows=rows_of(file)) for file in files]


def hashed(root: str, files: list[SourceFile]) -> list[SourceFile]:
    """The files with their SHA-256; those of the Hub's cache carry it in their name already."""
    result = []
    for file in tqdm(files, desc="hash", unit="file", mininterval=0.5, disable=len(files) < 50):
        result.append(file if file.sha256 else _with_sha256(root, file))
    return result


def _with_sha256(root: str, file: SourceFile) -> SourceFile:
    num_bytes, sha256 = size_and_sha256_of(root, file.path)
    if num_bytes != file.num_bytes:
        raise FoundryError(
            f"{file.path}: {num_bytes:,} bytes, a moment ago {file.num_bytes:,}; scan when nobody writes it"
        )
    return replace(file, sha256=sha256)


def _size(system: Any, name: str, entry: dict[str, Any]) -> int:
    """Bytes of a file; a listing over HTTP does not have them, its server may.

    Raises:
        FoundryError: nobody says.
    """
    try:
        size = entry.get("size")
        size = system.info(name).get("size") if size is None else size
    except OSError as error:
        raise FoundryError(f"{name}: cannot be looked at ({' '.join(str(error).split())})") from error
    if size is None:
        raise FoundryError(f"{name}: its server does not say how large it is; copy the files to a folder")
    return int(size)


def _not_utf8(name: str) -> bool:
    """Python holds such bytes of a name as lone surrogates, which no manifest can hold."""
    return any("\ud800" <= character <= "\udfff" for character in name)


def _is_linked_folder(entry: dict[str, Any]) -> bool:
    return bool(entry.get("islink")) and Path(entry["name"]).is_dir()


def _hub_sha256(entry: dict[str, Any]) -> str | None:
    """The Hub's cache links a large file to a blob that is named by its SHA-256."""
    target = PurePosixPath(str(entry.get("destination") or "").removeprefix("b'").removesuffix("'")).name
    return target if SHA256.fullmatch(target) else None


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts]


def _print(output: Path, manifest: Manifest, left_out: Counter[str]) -> None:
    table = Table(title=str(output), title_justify="left")
    for name in ("split", "files", "bytes", "rows (estimated)"):
        table.add_column(name, justify="left" if name == "split" else "right")
    for split, total in sorted(manifest.totals().items()):
        table.add_row(split, f"{total['files']:,}", f"{total['bytes']:,}", f"{total['rows']:,}")
    console.print(table)
    if left_out:
        console.print("left out: " + ", ".join(f"{count} {name}" for name, count in sorted(left_out.items())))
