"""The files of a corpus: a folder, one file, or a glob."""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...settings import FoundryError
from ..workers.executors import number_of_tasks
from .file_kinds import format_of

# Each task costs a process, a log and a file of each step; deduplication opens a file of every task at once.
FEWEST_TASKS, MOST_TASKS, BYTES_A_TASK = 64, 400, 32 << 20
ACCEPTED = ".jsonl (also .gz or .zst), .parquet"


@dataclass(frozen=True)
class InputFiles:
    """The files of a corpus, in the order of their names.

    Args:
        paths: ``jsonl`` and ``parquet`` -> paths relative to ``root``.
        not_read: paths of other kinds in the folder.
    """

    root: Path
    paths: dict[str, list[str]]
    not_read: tuple[str, ...] = ()

    @property
    def num_tasks(self) -> int:
        """Tasks of a stage that reads them: no more than files of the kind that has the most, of small ones fewer.

        Of files alone, for a stage that was interrupted goes on with the tasks that it had, on any number of workers.
        """
        num_bytes = sum(os.stat(self.root / path).st_size for paths in self.paths.values() for path in paths)
        by_size = max(FEWEST_TASKS, num_bytes // BYTES_A_TASK)
        return number_of_tasks(max(map(len, self.paths.values())), min(MOST_TASKS, by_size))

    def description(self) -> dict[str, Any]:
        """Number, size and fingerprint: names, sizes and times of change.  Hashing terabytes takes hours."""
        facts = []
        for path in sorted(path for paths in self.paths.values() for path in paths):
            status = os.stat(self.root / path)
            facts.append((path, status.st_size, status.st_mtime_ns))
        text = "".join(f"{name}\t{size}\t{changed}\n" for name, size, changed in facts)
        return {
            "files": len(facts),
            "bytes": sum(size for _, size, _ in facts),
            "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
        }


def kind_of(path: Path) -> str | None:
    """``jsonl`` or ``parquet`` by a file's ending; None for another."""
    kind = format_of(path)
    return None if kind == "text" else kind  # of a text file no row could be named


def find_files(pattern: str, output_dir: Path) -> InputFiles:
    """The files of a folder and the folders in it, one file, or what a glob finds.

    Raises:
        FoundryError: there are none, a file has another ending, or the output would become input.
    """
    others: tuple[str, ...] = ()
    if glob.has_magic(pattern) and not Path(pattern).exists():
        root, found = _glob(pattern)
    elif Path(pattern).is_dir():
        root = Path(pattern)
        present = [path for path in sorted(root.rglob("*")) if path.is_file()]
        found = [path for path in present if kind_of(path)]
        others = tuple(path.relative_to(root).as_posix() for path in present if not kind_of(path))
        if output_dir.resolve().is_relative_to(root.resolve()):
            raise FoundryError(
                f"output_dir: {output_dir} is inside input {pattern}; give a folder outside of it"
            )
    else:
        root, found = Path(pattern).parent, [path for path in [Path(pattern)] if path.is_file()]
    if not found:
        raise FoundryError(f"input: {pattern}: no file ending in {ACCEPTED} there")
    paths: dict[str, list[str]] = {"jsonl": [], "parquet": []}
    for path in found:
        kind = kind_of(path)
        if kind is None:
            raise FoundryError(f"input: {path}: expected a file ending in {ACCEPTED}")
        if path.resolve().is_relative_to(output_dir.resolve()):
            raise FoundryError(f"input: {path}: is inside output_dir {output_dir}; give another")
        if "\n" in str(path) or str(path) != str(path).strip():
            raise FoundryError(
                f"input: {str(path)!r}: a line break or a space at an end of its name; rename it"
            )
        paths[kind].append(path.relative_to(root).as_posix())
    return InputFiles(root, paths, others)


def _glob(pattern: str) -> tuple[Path, list[Path]]:
    """The folder before the first wildcard, and the files found; what is there under its own name is no wildcard."""
    parts = Path(pattern).parts
    fixed = 0
    while not glob.has_magic(parts[fixed]) or Path(*parts[: fixed + 1]).exists():
        fixed += 1
    root = Path(*parts[:fixed])
    found = sorted(
        root / name for name in glob.glob(str(Path(*parts[fixed:])), root_dir=root, recursive=True)
    )
    return root, [path for path in found if path.is_file()]
