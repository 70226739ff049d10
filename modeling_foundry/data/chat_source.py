"""The rows of a chat dataset: from the Hub or its cache, or from a local file, through ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..settings import FoundryError
from .chat_datasets import ChatDataset
from .chat_rows import Row
from .settings import ChatSettings

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
PACKED = (".gz", ".zst", ".xz", ".bz2")


@dataclass(frozen=True)
class Source:
    """Rows and where they came from.

    Args:
        name: what messages call it: the file, or the name on the Hub.
        facts: goes into ``chat.json``.
    """

    name: str
    table: Any
    facts: dict[str, Any]

    def __len__(self) -> int:
        return len(self.table)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Each row with its number, from 1."""
        yield from enumerate(self.table, start=1)


def open_source(dataset: ChatDataset, settings: ChatSettings) -> Source:
    """The rows that the settings name.

    Raises:
        FoundryError: the Hub cannot be reached and the cache has no copy, or the file is not readable.
    """
    if settings.file is not None:
        return _local(Path(settings.file))
    return _from_hub(settings.dataset, dataset, settings.revision)


def _local(path: Path) -> Source:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
    builder = BUILDERS.get(suffixes[-1] if suffixes else "")
    if builder is None:
        raise FoundryError(f"{path}: expected a .json, .jsonl or .parquet file, also packed as .gz")
    if path.stat().st_size == 0:
        raise FoundryError(f"{path}: empty; expected rows")
    try:
        table = load_dataset(builder, data_files=str(path), split="train")
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise FoundryError(f"{path}: not readable as {builder} ({_in_one_line(error)})") from error
    return Source(str(path), table, {"file": path.name})


def _from_hub(name: str, dataset: ChatDataset, revision: str | None) -> Source:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetNotFoundError

    try:
        builder = load_dataset_builder(dataset.repository, revision=revision)
        builder.download_and_prepare()
        table = builder.as_dataset(split=dataset.split)
    except (OSError, DatasetNotFoundError) as error:
        raise FoundryError(
            f"{name}: {dataset.repository} is neither reachable nor in the cache; fetch it where there is a "
            f"network, or give --file FILE, a json, jsonl or parquet file with {dataset.columns}"
        ) from error
    except ValueError as error:  # another split or configuration than the one we know
        raise FoundryError(f"{dataset.repository}: cannot be loaded ({_in_one_line(error)})") from error
    if revision is not None and len(revision) == 40 and builder.hash != revision:
        raise FoundryError(  # offline, `datasets` takes what the cache has, whatever was asked for
            f"{name}: the cache has revision {builder.hash} of {dataset.repository}, not {revision}"
        )
    facts = {"repository": dataset.repository, "split": dataset.split, "revision": builder.hash}
    return Source(dataset.repository, table, facts)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]
