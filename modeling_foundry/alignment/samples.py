"""The samples that SFT and DPO train on: every row checked, some rendered, then handed to TRL as the file has them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Json, Value
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ..data.linting.checks import Check, Cut
from ..data.linting.pipeline import Linter
from ..data.samples.files import CheckedFile, check_file, samples_of_file
from ..data.samples.samples import Kind
from ..files import sha256_of_file
from ..settings import FoundryError, sought
from ..training.session import console

NUM_LINTED_SAMPLES = 200  # a second or two; prepare_data.py lint renders as many as it is told
# Part of what the library's cache knows a data set by: raise it when the same file comes to give other rows.
SAMPLES_VERSION = 1


@dataclass(frozen=True)
class SampleFile:
    """``train_file`` or ``eval_file``: its key, a hash of its bytes, and what the check of its rows found."""

    key: str
    content: str
    checked: CheckedFile

    def __str__(self) -> str:
        return str(self.checked.path)


def hash_of_samples(path: str) -> str:
    """Tells one file of samples from another.

    Raises:
        FoundryError: it cannot be read.
    """
    if Path(path).is_fifo():
        raise FoundryError(
            f"{path}: a pipe, which gives its rows once; write them to a file, which may be packed"
        )
    try:
        return sha256_of_file(path)[:16]
    except OSError as error:
        raise FoundryError(
            f"{sought(path)}: cannot read the samples ({error.strerror}); run `make data` first"
        ) from error


def check_samples(settings: Any, inputs: dict[str, Any], kind: Kind) -> list[SampleFile]:
    """Check every row of ``train_file`` and, where there is one, of ``eval_file``.

    Args:
        inputs: their hashes, by key.

    Raises:
        FoundryError: the first row of a file that training could not read as it stands.
    """
    keys = [key for key in ("train_file", "eval_file") if getattr(settings, key) is not None]
    return [
        SampleFile(key, inputs[key], check_file(getattr(settings, key), kind, NUM_LINTED_SAMPLES))
        for key in keys
    ]


# -------------------------------------------------------------------------------------------- the linter


def lint_on_main(
    files: list[SampleFile], tokenizer: PreTrainedTokenizerBase, arguments: Any, stage: str
) -> None:
    """The chat linter over rows of each file, by one process, before any other renders the template.

    Raises:
        FoundryError: the first check that fails; ``prepare_data.py lint`` shows all of them.
    """
    with arguments.main_process_first(desc="chat linter"):
        if arguments.process_index != 0:
            return
        learns_all = not getattr(arguments, "assistant_only_loss", True)
        with Linter(tokenizer, cut_of(arguments), learns_all=learns_all) as linter:
            checks = [(file, check) for file in files for check in linter.report_on(file.checked).checks]
        for file, check in checks:
            if check.status == "FAIL":
                raise FoundryError(
                    f"{file}: {check.name}: {check.detail}; prepare_data.py lint shows all checks"
                )
        checks += [(file, seen) for file in files[1:] if (seen := _seen_in_training(files[0], file))]
        for file, check in checks:
            if check.status == "WARN":
                console.print(f"{stage}: {file.key}: {check.name}: {check.detail}")


@contextmanager
def template_refusals_named(files: list[SampleFile]) -> Iterator[None]:
    """TRL renders every row, and the linter only some: what the template refuses then is one line, too."""
    try:
        yield
    except (TemplateError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "no assistant" not in str(error):
            raise
        most = max(file.checked.num_rows for file in files)
        raise FoundryError(
            f"{' or '.join(map(str, files))}: the chat template refuses a row ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:200]}); prepare_data.py lint --num_samples={most} names it"
        ) from error


def cut_of(arguments: Any) -> Cut:
    """What TRL keeps of a sequence under these arguments."""
    if not getattr(arguments, "packing", False):
        return Cut(arguments.max_length, arguments.truncation_mode)
    # Of its ways of packing one cuts what is too long, from the start; the others go on in the next row.
    return Cut(arguments.max_length if arguments.packing_strategy == "bfd" else None)


def _seen_in_training(train: SampleFile, held_out: SampleFile) -> Check | None:
    both = len(train.checked.digests & held_out.checked.digests)
    if not both:
        return None
    detail = f"{both:,} of {len(held_out.checked.digests):,} different samples are in train_file, too"
    return Check("held-out samples", "WARN", detail)


# ------------------------------------------------------------------------------------------ the data sets


def load_samples(file: SampleFile, limit: int | None, seed: int) -> Dataset:
    """Samples with exactly the columns TRL reads, shuffled by the seed, at most ``limit`` of them.

    Values are kept as JSON text, so that no type is guessed and no key of one row becomes a null of the others.
    """
    checked = file.checked
    features = {name: Value("string") if name == "tools" else Json() for name in checked.columns}
    facts = {"kind": checked.kind, "content": file.content, "version": SAMPLES_VERSION}
    samples = Dataset.from_generator(
        stored_rows,
        features=Features(features),
        gen_kwargs={"path": str(checked.path), "columns": checked.columns, "facts": facts},
    ).shuffle(seed=seed)
    return samples.select(range(min(limit, len(samples)))) if limit else samples


def stored_rows(
    path: str, columns: tuple[str, ...], facts: dict[str, Any]
) -> Iterator[dict[str, str | None]]:
    """Each sample as JSON texts; ``facts`` tell the library's cache one content of the path from another."""
    absent: dict[str, Any] = {"tools": None, "chat_template_kwargs": {}}
    for sample in samples_of_file(path, facts["kind"]):
        values = {name: sample.get(name, absent.get(name)) for name in columns}
        yield {name: None if value is None else json.dumps(value) for name, value in values.items()}
