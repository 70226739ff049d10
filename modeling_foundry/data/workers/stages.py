"""Stages of datatrove with the books kept: what goes into a step comes out of it or is written down as removed.

A stage is one run of datatrove's local executor: tasks side by side, each marked when it is complete, so that an
interrupted stage goes on with the tasks that are not.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import multiprocess
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import setup_default_logger
from multiprocess.managers import SyncManager
from tqdm.auto import tqdm

from .executors import num_workers
from .local_folder import LocalFolder
from .lost_workers import lost_workers_noticed, task_noted

_watching = threading.Lock()


class TaskWriter(JsonlWriter):
    """datatrove's JSONL writer, one file a task, whatever the documents' metadata holds.

    Its own file names are templates that metadata fills too, so a document with a key ``rank`` would choose
    the file it is written to.

    Args:
        prefix: of the file names, where two writers of a task share a folder.
    """

    def __init__(self, folder: str | Path, prefix: str = "") -> None:
        super().__init__(LocalFolder(folder), output_filename=f"{prefix}${{rank}}.jsonl", compression="gzip")

    def _get_output_filename(self, document: Document, rank: int | str = 0, **_: Any) -> str:
        return self.output_filename.substitute(rank=str(rank).zfill(5))


class RemovedWriter(TaskWriter):
    """Writes removed documents with ``filter_reason`` in their metadata, and counts them by it.

    Args:
        reason: where the step that removes them gives none.
    """

    def __init__(self, folder: str | Path, reason: str, prefix: str = "") -> None:
        super().__init__(folder, prefix)
        self.reason = reason
        self.num_documents: Counter[str] = Counter()
        self.num_bytes: Counter[str] = Counter()

    def write(self, document: Document, rank: int = 0, **kwargs: Any) -> None:
        reason = document.metadata.setdefault("filter_reason", self.reason)
        self.num_documents[reason] += 1
        self.num_bytes[reason] += len(document.text.encode())
        super().write(document, rank, **kwargs)


class Counted(PipelineStep):
    """A step that removes documents, with what goes in, comes out and is removed counted.

    Statistics: ``in``, ``out``, ``removed:REASON``, and each with ``_bytes`` (UTF-8 of the text).

    Args:
        step: a filter of datatrove, whose ``exclusion_writer`` is a :class:`RemovedWriter`.
    """

    type = "counted"

    def __init__(self, step: Any, name: str) -> None:
        self.name = name
        super().__init__()
        self.step = step

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Run the step; a document it leaves no text of is removed too."""
        writer = self.step.exclusion_writer
        for document in self.step.run(self._incoming(data), rank, world_size):
            if not document.text.strip():
                document.metadata["filter_reason"] = "nothing_left"
                writer.write(document, rank)
                continue
            self._count("out", 1, len(document.text.encode()))
            yield document
        for reason, number in sorted(writer.num_documents.items()):
            self._count(f"removed:{reason}", number, writer.num_bytes[reason])

    def _incoming(self, data: Any) -> Iterator[Document]:
        for document in data:
            self._count("in", 1, len(document.text.encode()))
            yield document

    def _count(self, label: str, number: int, num_bytes: int) -> None:
        self.stat_update(label, value=number)
        self.stat_update(f"{label}_bytes", value=num_bytes)


# ------------------------------------------------------------------------------------------------ stages


@dataclass(frozen=True)
class Stage:
    """One run of the executor.

    Args:
        name: also of its folder of logs, where datatrove keeps completions and statistics.
    """

    name: str
    steps: Sequence[Any]
    num_tasks: int


class QuietExecutor(LocalPipelineExecutor):
    """The local executor whose log goes to files alone, and whose workers end with the process that started them."""

    _notes: str

    def run(self) -> Any:
        """Run all tasks.

        Raises:
            FoundryError: a worker was ended from outside.
        """
        with tempfile.TemporaryDirectory() as self._notes, lost_workers_noticed(self._notes), _own_manager():
            return super().run()

    def _launch_run_for_rank(self, rank: int, *arguments: Any, **keywords: Any) -> Any:
        end_with_parent()
        if (
            multiprocess.parent_process() is not None
        ):  # else it is this process, whose threads are not ours to limit
            os.environ.setdefault("RAYON_NUM_THREADS", str(threads_of_a_worker(self.workers)))
        with quiet(), task_noted(self._notes, rank):
            return super()._launch_run_for_rank(rank, *arguments, **keywords)


def threads_of_a_worker(workers: int) -> int:
    """Threads for the tokenizers library in each of so many processes; told nothing, each takes one a core."""
    return max(1, num_workers(-1) // workers)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """datatrove's log and its bars off stderr; each task's log is in its file."""
    before = sys.stderr
    with contextlib.redirect_stderr(io.StringIO()):
        setup_default_logger()
        try:
            yield
        finally:
            # loguru holds the stream it was given: without this it would go on writing to the one of here.
            sys.stderr = before
            setup_default_logger()


@contextlib.contextmanager
def _own_manager() -> Iterator[None]:
    """The process in which datatrove keeps its queue ends with this one too.

    One left over holds stdout open: ``tokenize | tee log`` would never end after a kill.  datatrove has no hook
    for it and asks the module ``multiprocess``.
    """
    before = multiprocess.Manager

    def started() -> SyncManager:
        manager = SyncManager(ctx=multiprocess.get_context())
        manager.start(end_with_parent)
        return manager

    multiprocess.Manager = started
    try:
        yield
    finally:
        multiprocess.Manager = before


def end_with_parent() -> None:
    """In a worker: end when the process that started it does.

    One that was killed outright (-9) would leave its workers writing the files that the next run writes.
    """
    parent = multiprocess.parent_process()
    if parent is not None and _watching.acquire(blocking=False):
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def run_stage(stage: Stage, logs: Path, workers: int) -> None:
    """Run the tasks of a stage that are not complete, with a bar."""
    folder = logs / stage.name
    executor = QuietExecutor(
        list(stage.steps),
        tasks=stage.num_tasks,
        workers=min(workers, stage.num_tasks),
        logging_dir=LocalFolder(folder),
    )
    done = threading.Event()
    with tqdm(total=stage.num_tasks, desc=stage.name, unit="task", leave=False) as bar:
        watcher = threading.Thread(target=_follow, args=(folder / "completions", bar, done), daemon=True)
        watcher.start()
        try:
            with quiet():
                executor.run()
        finally:
            done.set()
            watcher.join()


def _follow(completions: Path, bar: Any, done: threading.Event) -> None:
    while not done.wait(0.5):
        bar.update(len(os.listdir(completions)) - bar.n if completions.is_dir() else 0)


def statistics_of(logs: Path, stage: Stage) -> dict[str, dict[str, int]]:
    """The statistics of a complete stage, summed over its tasks: step -> label -> number.

    datatrove's own sum (``stats.json``) holds the tasks of the last run only, so the tasks' files are read.
    """
    totals: dict[str, Counter[str]] = {}
    for rank in range(stage.num_tasks):
        path = logs / stage.name / "stats" / f"{rank:05d}.json"
        for step in json.loads(path.read_text(encoding="utf-8")):
            counts = totals.setdefault(step["name"].split(": ", 1)[1], Counter())
            for label, value in step["stats"].items():
                counts[label] += int(value["total"] if isinstance(value, dict) else value)
    return {name: dict(counts) for name, counts in totals.items()}
