"""The JSON lines that SFT and DPO train on: read, checked and shuffled."""

from __future__ import annotations

import sys
from typing import Any, Literal

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers import PreTrainedTokenizerBase

from ..data.chat_linter import UnlikeSampleError, lint_samples, read_rows
from ..files import sha256_of_file
from ..settings import FoundryError

NUM_LINTED_SAMPLES = 200  # a second or two; prepare_data.py lint reads as many as it is told


def hash_of_samples(path: str) -> str:
    """Tells one file of samples from another.

    Raises:
        FoundryError: it cannot be read.
    """
    try:
        return sha256_of_file(path)[:16]
    except OSError as error:
        raise FoundryError(
            f"{path}: cannot read the samples ({error.strerror}); run `make data` first"
        ) from error


def load_samples(path: str, columns: tuple[str, ...], limit: int | None, seed: int) -> Dataset:
    """Samples with exactly the columns TRL reads, shuffled by the seed, at most ``limit`` of them.

    Raises:
        FoundryError: not JSON lines, none of them, or without one of the columns.
    """
    with open(path, "rb") as lines:
        if not any(line.strip() for line in lines):
            raise FoundryError(f"{path}: holds no samples; every line needs {', '.join(columns)}")
    try:
        samples = load_dataset("json", data_files=path, split="train")
    except (DatasetGenerationError, ValueError) as error:
        for _ in read_rows(path, sys.maxsize):  # names the line; pyarrow's row is counted from 0 in a block
            pass
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise FoundryError(f"{path}: not JSON lines that can be read ({reason})") from error
    missing = [name for name in columns if name not in samples.column_names]
    if missing:
        raise FoundryError(f"{path}: every line needs {', '.join(columns)}; missing {', '.join(missing)}")
    samples = samples.select_columns(list(columns)).shuffle(seed=seed)
    return samples.select(range(min(limit, len(samples)))) if limit else samples


def lint_on_main(
    train_file: str, tokenizer: PreTrainedTokenizerBase, arguments: Any, kind: Literal["sft", "preference"]
) -> None:
    """The chat linter over samples of the whole file, by one process, before any other renders the template.

    Raises:
        FoundryError: the first check that fails; ``prepare_data.py lint`` shows all of them.
    """
    with arguments.main_process_first(desc="chat linter"):
        if arguments.process_index != 0:
            return
        numbers, samples = zip(*read_rows(train_file, NUM_LINTED_SAMPLES), strict=True)
        length = arguments.max_length or tokenizer.model_max_length
        try:
            checks = lint_samples(samples, tokenizer, length, kind, numbers=numbers).checks
        except UnlikeSampleError as error:
            raise FoundryError(f"{train_file}: {error}") from error
        failed = next((check for check in checks if check.status == "FAIL"), None)
        if failed is not None:
            raise FoundryError(
                f"{train_file}: {failed.name}: {failed.detail}; prepare_data.py lint shows all checks"
            )
