"""What one optimizer step of a finished, stopped or running run read: documents, where they come from, their loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.sequences.mixture import MixedDataset
from ..data.sequences.packing import PackedDataset
from ..data.sequences.sample_order import ORDER_NAME, SampleOrder, read_order
from ..data.sequences.training_data import TrainingData, open_mixture, open_training_data
from ..data.tokens.corpus import CorpusSplit, TokenSource
from ..data.tokens.shards import TokenShard
from ..run_record import RECORD_NAME
from ..saved_model import load_model, load_tokenizer
from ..settings import FoundryError
from ..terminal import console
from ..training.log.log_file import LOG_NAME, read_log
from .commands import ReplaySettings


@dataclass(frozen=True)
class DocumentPart:
    """The part of one document that lies in one sequence.

    Args:
        document: number of the document within its shard.
        start, stop: tokens within the shard.
    """

    shard: TokenShard
    document: int
    start: int
    stop: int

    def words(self) -> str:
        """Shard, document, tokens and, where the shard knows it, the file that it was made from."""
        made_from = self.shard.header.source.get("path")
        source = f" (from {made_from})" if made_from else ""
        return f"{self.shard.path}{source}, document {self.document}, tokens {self.start} to {self.stop - 1}"


@dataclass(frozen=True)
class RunOnDisk:
    """What ``run.json`` and ``sample_order.json`` of a run folder say, and its data opened."""

    folder: Path
    order: SampleOrder
    data: TrainingData
    dataset: PackedDataset | MixedDataset
    max_steps: int

    @classmethod
    def open(cls, folder: Path) -> RunOnDisk:
        """Open a run of ``recipes/pretrain.py``.

        Raises:
            FoundryError: no such run, or its data is no longer what it was trained on.
        """
        path = folder / RECORD_NAME
        try:
            record = json.loads(path.read_text())
            data, training = record["settings"]["data"], record["settings"]["training"]
            fingerprint = record["inputs"]["data"]
        except FileNotFoundError as error:
            raise FoundryError(f"{path}: missing; run_dir: expected a run folder of pretrain.py") from error
        except (ValueError, KeyError, TypeError) as error:
            raise FoundryError(f"{path}: not the record of a pretraining run") from error
        order = read_order(folder)
        if order is None:
            raise FoundryError(f"{folder / ORDER_NAME}: missing; only a run that wrote it can be replayed")
        opened = open_data(folder, data)
        if opened.fingerprint != fingerprint:
            raise FoundryError(
                f"{folder}: the data has changed since the run (fingerprint was {fingerprint})"
            )
        dataset = opened.train_dataset(
            data["sequence_length"], order.num_samples(training["max_steps"]), training["seed"],
            data["document_mask"],
        )  # fmt: skip
        return cls(folder, order, opened, dataset, training["max_steps"])

    def block(self, sample: int) -> tuple[PackedDataset, int]:
        """The packed source that a sample comes from, and which block of it the sample is."""
        part: PackedDataset
        if isinstance(self.dataset, MixedDataset):
            source, number = self.dataset.mixture.place(sample)
            part = self.dataset.parts[source]
        else:
            part, number = self.dataset, sample
        return part, int(part.sample_ids(number, number + 1)[0])

    def parts(self, sample: int) -> list[DocumentPart]:
        """The documents of a sample, in order."""
        part, block = self.block(sample)
        start = block * part.sequence_length
        return list(parts_of(part.source, start, start + part.sequence_length))


def open_data(folder: Path, data: dict[str, Any]) -> TrainingData:
    """The data of a run from the ``data`` settings in its record."""
    if data["mixture"] is not None:
        return open_mixture(data["mixture"], data["max_epochs"])
    if data["data_dir"] is None:
        return open_training_data(folder / "data")
    return open_training_data(_newest_data_dir(folder) or data["data_dir"])


def _newest_data_dir(folder: Path) -> str | None:
    """Where the newest start found the data, which may have moved since the record was written."""
    if not (folder / LOG_NAME).is_file():
        return None
    starts = [line["config"] for line in read_log(folder) if "config" in line]
    return starts[-1].get("data", {}).get("data_dir") if starts else None


def parts_of(source: TokenSource, start: int, stop: int) -> Iterator[DocumentPart]:
    """The documents in the tokens [start, stop) of a shard, or of all shards of a split."""
    if isinstance(source, TokenShard):
        ends = source.document_ends()
        document = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            end = min(stop, int(ends[document]))
            yield DocumentPart(source, document, start, end)
            document, start = document + 1, end
    elif isinstance(source, CorpusSplit):
        for number, (first, last) in enumerate(zip(source.offsets, source.offsets[1:], strict=False)):
            if first < stop and last > start and last > first:
                inside = max(start, int(first)) - int(first), min(stop, int(last)) - int(first)
                yield from parts_of(source.shard(number), *inside)
    else:
        raise TypeError(f"{type(source).__name__} knows no documents")


def replay(settings: ReplaySettings) -> None:
    """Print the sequences of one optimizer step.

    Raises:
        FoundryError: no such run or step, its data changed, or no model where ``checkpoint`` says.
    """
    run = RunOnDisk.open(Path(settings.run_dir))
    samples, words = samples_of(run, settings)
    tokenizer = load_tokenizer(run.data.tokenizer_folder)
    model = None if settings.checkpoint is None else load_model(settings.checkpoint)
    shown = samples[: settings.max_sequences or None]
    console.print(f"{settings.run_dir}, {words}", style="bold")
    for sample in shown:
        loss = "" if model is None else f", loss {loss_of(model, run.dataset[sample]):.4f}"
        console.print(f"\nsample {sample}{loss}", style="bold")
        for part in run.parts(sample):
            text = tokenizer.decode(part.shard.read(part.start, part.stop).astype(np.int64).tolist())
            console.print(f"  {part.words()}", style="cyan")
            console.print(shortened(text, settings.max_characters))
    if len(shown) < len(samples):
        console.print(f"\n{len(samples) - len(shown)} more sequences; --max_sequences=0 shows all")


def samples_of(run: RunOnDisk, settings: ReplaySettings) -> tuple[Sequence[int], str]:
    """The samples to show, and what they are; those that a rollback left out are in no step any more.

    Raises:
        FoundryError: the run has no such step or sample.
    """
    if settings.step is None:
        samples = settings.samples or []
        for sample in samples:
            if not 0 <= sample < len(run.dataset):
                raise FoundryError(
                    f"samples: {run.folder} has samples 0 to {len(run.dataset) - 1}, found {sample}"
                )
        return samples, f"{len(samples)} sample(s)"
    if settings.step > run.max_steps:
        raise FoundryError(f"step: {settings.run_dir} has {run.max_steps} steps, found {settings.step}")
    read = run.order.samples(settings.step)
    return read, f"step {settings.step}: samples {read.start} to {read.stop - 1}"


@torch.no_grad()
def loss_of(model: Any, row: dict[str, torch.Tensor]) -> float:
    """Mean loss of one sequence in nats per token."""
    inputs = {name: value[None].to(model.device) for name, value in row.items()}
    return float(model(**inputs).loss)


def shortened(text: str, max_characters: int) -> str:
    if max_characters == 0 or len(text) <= max_characters:
        return text
    return f"{text[:max_characters]} [... {len(text) - max_characters:,} more characters]"
