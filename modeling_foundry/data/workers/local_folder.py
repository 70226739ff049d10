"""A folder of this machine for datatrove, whose own takes a path for a URL and for a pattern."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from datatrove.io import DataFolder
from fsspec.implementations.local import LocalFileSystem

from ...files import read_lines


class LocalFolder(DataFolder):
    """datatrove's folder, whatever characters its name has.

    Given text, datatrove asks fsspec, for which ``a::b`` is a chain of URLs; and where it looks for files by a
    pattern, a folder named ``a[1]`` is part of the pattern: nothing was found there, so no duplicate either.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(str(path), fs=LocalFileSystem())

    def glob(self, path: str, detail: bool = False, **_: Any) -> Any:
        """Names, relative to the folder, that match a pattern; with ``detail`` what the system knows of each."""
        names = sorted(glob.glob(path, root_dir=self.path, recursive=True))
        return {name: self.info(name) for name in names} if detail else names


class ListedFiles(LocalFolder):
    """Those files of a folder that stand in a list.

    Args:
        listed: a file of paths relative to ``path``, one a line, dealt to the tasks in turn.
    """

    def __init__(self, path: str | Path, listed: str | Path) -> None:
        super().__init__(path)
        self.listed = listed

    def get_shard(self, rank: int, world_size: int, **_: Any) -> list[str]:
        """The paths of one task."""
        return read_lines(self.listed)[rank::world_size]
