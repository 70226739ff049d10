"""From a manifest to a corpus of token shards: one shard a file, on one machine, SLURM or Ray.

A shard with its header is whole, so it is never made again; a file without one is tokenized from its first row.
datatrove runs the tasks and keeps their logs; what is finished is decided by the shards alone, so any number of
tasks, workers or restarts gives the same corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from ..files import write_atomically
from ..settings import FoundryError
from .documents import DamagedFileError, read_documents
from .fast_tokenizer import DocumentEncoder, Engine, UnencodableText
from .manifest import SourceFile
from .manifest_scan import size_and_sha256_of
from .shards import ShardHeader, TokenShard, header_path, write_shard
from .token_corpus import TOKENIZER_FOLDER

BATCH_CHARACTERS = 4_000_000
FAILED_FOLDER = "failed"
PROOF_FOLDER = "tokenizer_proof"


@dataclass(frozen=True)
class ShardTask:
    """One file and the shard it becomes (``shard`` is relative to the corpus folder)."""

    file: SourceFile
    shard: str

    @property
    def failure(self) -> str:
        """Where a reason is written when the file cannot be made into a shard."""
        return f"{FAILED_FOLDER}/{self.shard.replace('/', '-')}.json"


@dataclass(frozen=True)
class TokenizeJob:
    """All that a task needs to know, on any machine.

    Args:
        folder: the corpus folder, with the tokenizer in ``tokenizer/``.
        root: folder or fsspec URL of the manifest.
        plan: hash of all settings that decide the tokens; a shard of another plan is made again.
            ``bad_rows`` and ``damaged_files`` are not among them: they say which shards may stand.
    """

    folder: Path
    root: str
    text_key: str
    eos_token_id: int
    engine: Engine
    bad_rows: str
    damaged_files: str
    plan: str


def shard_tasks(files: list[SourceFile]) -> list[ShardTask]:
    """One task a file, numbered within its split."""
    numbers: Counter[str] = Counter()
    tasks = []
    for file in files:
        tasks.append(ShardTask(file, f"{file.split}/{numbers[file.split]:06d}.ds"))
        numbers[file.split] += 1
    return tasks


class TokenizeFiles(PipelineStep):
    """datatrove step: task r of n makes the shards of files r, r + n, r + 2n, ..."""

    name = "files to token shards"
    type = "tokenizer"

    def __init__(self, job: TokenizeJob, tasks: list[ShardTask]) -> None:
        super().__init__()
        self.job, self.tasks = job, tasks

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
        for task in self.tasks[rank::world_size]:
            header = finished_shard(self.job, task)
            if header is None:
                header = tokenize_file(self.job, task)
            if header is not None:
                self.stat_update("tokens", value=header.num_tokens, unit="file")
        yield from ()


def finished_shard(job: TokenizeJob, task: ShardTask) -> ShardHeader | None:
    """The header of a shard that is whole, of this very file, plan and policy; None when there is work to do."""
    if not header_path(job.folder / task.shard).is_file():
        return None
    try:
        header = TokenShard.open(job.folder / task.shard).header
    except FoundryError:
        return None
    source = header.source
    if (source.get("bad_rows") and job.bad_rows == "stop") or (
        source.get("damaged") and job.damaged_files == "stop"
    ):
        return None
    expected = {"path": task.file.path, "num_bytes": task.file.num_bytes, "plan": job.plan}
    same = {key: source.get(key) for key in expected} == expected
    known = task.file.sha256
    return header if same and (known is None or source.get("sha256") == known) else None


def tokenize_file(job: TokenizeJob, task: ShardTask) -> ShardHeader | None:
    """Make one shard; a file that cannot be is recorded in ``failed/`` and None is returned.

    The other files go on: whether a failure ends the run is said when all are done.
    """
    failure = job.folder / task.failure
    failure.unlink(missing_ok=True)
    try:
        return _write(job, task)
    except FoundryError as error:
        header_path(job.folder / task.shard).unlink(missing_ok=True)
        record = {"path": task.file.path, "split": task.file.split, "reason": str(error)}
        write_atomically(failure, json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        return None


def _write(job: TokenizeJob, task: ShardTask) -> ShardHeader:
    num_bytes, sha256 = _size_and_sha256(job.root, task.file.path)
    if num_bytes != task.file.num_bytes:
        raise FoundryError(
            f"{task.file.path}: not the file of the manifest ({num_bytes:,} bytes, expected "
            f"{task.file.num_bytes:,}); scan the folder again"
        )
    if task.file.sha256 not in (None, sha256):
        raise FoundryError(
            f"{task.file.path}: not the file of the manifest (SHA-256 {sha256[:12]}…, expected "
            f"{str(task.file.sha256)[:12]}…); scan the folder again"
        )
    encoder = encoder_of(job.folder, job.engine)
    mismatches = len(encoder.mismatches)
    header = _write_with(job, task, encoder, sha256)
    if len(encoder.mismatches) > mismatches:  # found in mid-file: the encoder has left the fast engine by now
        header = _write_with(job, task, encoder, sha256)
    return header


def _size_and_sha256(root: str, path: str) -> tuple[int, str]:
    try:
        return size_and_sha256_of(root, path)
    except OSError as error:
        raise FoundryError(f"{path}: cannot be read ({error.strerror or error})") from error


def _write_with(job: TokenizeJob, task: ShardTask, encoder: DocumentEncoder, sha256: str) -> ShardHeader:
    bad_rows: Counter[str] = Counter()
    facts: dict[str, Any] = {
        "path": task.file.path, "num_bytes": task.file.num_bytes, "sha256": sha256, "plan": job.plan
    }  # fmt: skip

    def source() -> dict[str, Any]:
        if bad_rows and job.bad_rows == "stop":
            raise FoundryError(f"{task.file.path}: {said(bad_rows)}; mend the file, or --bad_rows=skip")
        mismatches = [asdict(mismatch) for mismatch in encoder.mismatches]
        return {**facts, "bad_rows": dict(bad_rows), "engine": encoder.engine, "mismatches": mismatches}

    return write_shard(
        job.folder / task.shard, _documents(job, task, encoder, bad_rows, facts), encoder.vocab_size,
        job.eos_token_id, encoder.sha256, source,
    )  # fmt: skip


def _documents(
    job: TokenizeJob, task: ShardTask, encoder: DocumentEncoder, bad_rows: Counter[str], facts: dict[str, Any]
) -> Iterator[NDArray[np.unsignedinteger]]:
    facts.update(text_bytes=0, damaged=None)
    texts = _keep_before_damage(job, read_documents(job.root, task.file, job.text_key, bad_rows), facts)
    for batch in batches(texts):
        facts["text_bytes"] += sum(len(text.encode()) for text in batch)
        yield from _encoded(encoder, batch, bad_rows)


def _encoded(
    encoder: DocumentEncoder, batch: list[str], bad_rows: Counter[str]
) -> list[NDArray[np.unsignedinteger]]:
    """Ids of the documents of a batch; one that no tokenizer takes is counted and left out."""
    while True:
        try:
            return encoder.encode(batch)
        except UnencodableText as error:
            bad_rows[error.reason] += 1
            batch = [*batch[: error.number], *batch[error.number + 1 :]]


def _keep_before_damage(job: TokenizeJob, texts: Iterator[str], facts: dict[str, Any]) -> Iterator[str]:
    try:
        yield from texts
    except DamagedFileError as error:
        if job.damaged_files == "stop":
            raise
        facts["damaged"] = str(error)


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Documents in batches of some million characters; a larger document is a batch of its own."""
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        if batch and num_characters + len(text) > BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
        batch.append(text)
        num_characters += len(text)
    if batch:
        yield batch


@lru_cache(maxsize=1)
def encoder_of(folder: Path, engine: Engine) -> DocumentEncoder:
    """One encoder a process, whatever number of files it tokenizes; its proof lies beside the shards."""
    return DocumentEncoder.load(folder / TOKENIZER_FOLDER, engine, cache_dir=folder / PROOF_FOLDER)


def said(counts: dict[str, int] | Counter[str]) -> str:
    """Counts by reason, in words."""
    return ", ".join(
        f"{count:,} row{'s' * (count != 1)} with {reason}" for reason, count in sorted(counts.items())
    )
