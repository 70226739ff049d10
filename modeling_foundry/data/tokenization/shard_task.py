"""From a manifest to a corpus of token shards: one shard a file, on one machine, SLURM or Ray.

A shard with its header is whole, so it is never made again; a file without one is tokenized from its first row.
datatrove runs the tasks and keeps their logs; what is finished is decided by the shards alone, so any number of
tasks, workers or restarts gives the same corpus.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from numpy.typing import NDArray

from ...files import write_atomically
from ...settings import FoundryError
from ..sources.documents import read_documents
from ..sources.file_bytes import ReadBytes
from ..sources.lines import DamagedFileError
from ..sources.manifest import SourceFile
from ..tokenizer.document_encoder import DocumentEncoder, Engine, UnencodableText
from ..tokenizer.training import batches_of
from ..tokens.corpus import TOKENIZER_FOLDER
from ..tokens.shards import ShardHeader, TokenShard, header_path, write_shard

BATCH_CHARACTERS = 4_000_000
FAILED_FOLDER = "failed"
PROOF_FOLDER = "tokenizer_proof"


class EngineLeftError(Exception):
    """The fast engine was found to differ in mid-file: what it made of the file before must not stay."""


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
        prefix: ids that every document begins with.
        plan: hash of all settings that decide the tokens; a shard of another plan is made again.
            ``bad_rows`` and ``damaged_files`` are not among them: they say which shards may stand.
    """

    folder: Path
    root: str
    text_key: str
    eos_token_id: int
    tokenizer_sha256: str
    engine: Engine
    bad_rows: str
    damaged_files: str
    plan: str
    prefix: tuple[int, ...] = ()


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
    same &= (header.tokenizer_sha256, header.eos_token_id) == (job.tokenizer_sha256, job.eos_token_id)
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
    encoder = encoder_of(job.folder, job.engine, job.tokenizer_sha256)
    before = len(encoder.mismatches)
    try:
        return _write_with(job, task, encoder, before)
    except EngineLeftError:  # the reference encodes from here on; nothing of the first attempt got a header
        return _write_with(job, task, encoder, before)


def _write_with(job: TokenizeJob, task: ShardTask, encoder: DocumentEncoder, before: int) -> ShardHeader:
    bad_rows: Counter[str] = Counter()
    facts: dict[str, Any] = {"path": task.file.path, "plan": job.plan, "text_bytes": 0, "damaged": None}
    seen = ReadBytes()

    def source() -> dict[str, Any]:
        _check_bytes(task.file, seen)
        if bad_rows and job.bad_rows == "stop":
            raise FoundryError(f"{task.file.path}: {said(bad_rows)}; mend the file, or --bad_rows=skip")
        facts.update(num_bytes=seen.num_bytes, sha256=seen.sha256, bad_rows=dict(bad_rows))
        mismatches = [asdict(mismatch) for mismatch in encoder.mismatches[before:]]  # of this file
        return {**facts, "engine": encoder.engine, "mismatches": mismatches}

    return write_shard(
        job.folder / task.shard, _documents(job, task, encoder, bad_rows, facts, seen), encoder.vocab_size,
        job.eos_token_id, encoder.sha256, source,
    )  # fmt: skip


def _check_bytes(file: SourceFile, seen: ReadBytes) -> None:
    """Refuse what was read when it is not the file of the manifest."""
    if seen.num_bytes != file.num_bytes:
        found, expected = f"{seen.num_bytes:,} bytes", f"{file.num_bytes:,}"
    elif file.sha256 not in (None, seen.sha256):
        found, expected = f"SHA-256 {seen.sha256[:12]}…", f"{str(file.sha256)[:12]}…"
    else:
        return
    raise FoundryError(
        f"{file.path}: not the file of the manifest ({found}, expected {expected}); scan the folder again"
    )


def _documents(
    job: TokenizeJob, task: ShardTask, encoder: DocumentEncoder, bad_rows: Counter[str], facts: dict[str, Any],
    seen: ReadBytes,
) -> Iterator[NDArray[np.unsignedinteger]]:  # fmt: skip
    texts = read_documents(job.root, task.file, job.text_key, bad_rows, seen)
    for batch in batches_of(_keep_before_damage(job, task, texts, facts, seen), BATCH_CHARACTERS):
        facts["text_bytes"] += sum(len(text.encode()) for text in batch)
        engine, documents = encoder.engine, _encoded(encoder, batch, bad_rows)
        if encoder.engine != engine:
            raise EngineLeftError
        for ids in documents:
            token = encoder.control_token_in(ids, job.eos_token_id)
            if token is None:
                yield np.concatenate([np.array(job.prefix, dtype=ids.dtype), ids]) if job.prefix else ids
            else:
                bad_rows[f"text that becomes the control token {token}"] += 1


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


def _keep_before_damage(
    job: TokenizeJob, task: ShardTask, texts: Iterator[str], facts: dict[str, Any], seen: ReadBytes
) -> Iterator[str]:
    try:
        yield from texts
    except DamagedFileError as error:
        _check_bytes(task.file, seen)  # damaged because it is another file than was scanned
        if job.damaged_files == "stop":
            raise
        facts["damaged"] = str(error)


@lru_cache(maxsize=1)
def encoder_of(folder: Path, engine: Engine, sha256: str) -> DocumentEncoder:
    """One encoder a process, whatever number of files it tokenizes; its proof lies beside the shards.

    Raises:
        FoundryError: the tokenizer of the folder is not the one with that hash.
    """
    encoder = DocumentEncoder.load(folder / TOKENIZER_FOLDER, engine, cache_dir=folder / PROOF_FOLDER)
    if encoder.sha256 != sha256:
        raise FoundryError(
            f"{folder / TOKENIZER_FOLDER}: was changed while the corpus was made; run the same command again"
        )
    return encoder


def said(counts: dict[str, int] | Counter[str]) -> str:
    """Counts by reason, in words."""
    return ", ".join(
        f"{count:,} row{'s' * (count != 1)} with {reason}" for reason, count in sorted(counts.items())
    )
