"""The rows of a chat dataset: from the Hub or its cache through ``datasets``, or from a local file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...settings import FoundryError
from ..samples.rows import NumberedRow, rows_of_file
from .datasets import ChatDataset
from .settings import ChatSettings


@dataclass(frozen=True)
class Source:
    """Rows and where they came from.

    Args:
        name: what messages call it: the file, or the name on the Hub.
        rows: each with its number, from 1; a row that cannot be read is the reason why.
        num_rows: where it is known before they are read.
        facts: goes into ``chat.json``.
    """

    name: str
    rows: Iterable[NumberedRow]
    num_rows: int | None
    facts: dict[str, Any]


def open_source(dataset: ChatDataset, settings: ChatSettings) -> Source:
    """The rows that the settings name.

    Raises:
        FoundryError: the Hub cannot be reached and the cache has no copy, or the file is not readable.
    """
    if settings.file is not None:
        path = Path(settings.file)
        return Source(str(path), rows_of_file(path).rows, None, {"file": path.name})
    return _from_hub(settings.dataset, dataset, settings.revision)


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
    return Source(dataset.repository, enumerate(table, start=1), len(table), facts)


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).split())[:200]
