"""lm-eval, run as its own command line: one process a model, its output kept, nothing measured twice.

``python -m modeling_foundry.evaluation.harness run ...`` is ``lm_eval run ...`` with ``model_type: foundry``
registered first, so that checkpoints load without remote code.  One flag more than lm-eval has:
``--only_included_tasks`` leaves lm-eval's own 14,000 task files unread, which take longer to index than the
quickstart's tasks take to run.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..settings import FoundryError

ONLY_INCLUDED = "--only_included_tasks"
RECEIPT_NAME = "receipt.json"
LOG_NAME = "lm_eval.log"
ITEMS_NAME = "items.json"  # a file: a command line holds some 20,000 numbers and no more
MODEL_NAME = "foundry"  # of language_model.py, which takes seconds to import
END_OF_TEXT = "<|endoftext|>"
# tqdm's: "name:  33%|███▎      | 4/12 [00:01<00:02,  3.90it/s]", and "12it [00:01, 9.9it/s]" without a total.
PROGRESS_BAR = re.compile(r"\d+%\|.*\[\d+:|^.*\d+it \[\d+:")
PROGRESS = re.compile(r"([A-Z][a-z_ ]+ requests): +(\d+)%")


def main() -> None:
    """lm-eval's command line with our model type registered."""
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    import modeling_foundry  # noqa: F401  (registers the Auto classes)

    from .measuring import language_model  # noqa: F401  (registers the model)

    if ONLY_INCLUDED in sys.argv:
        sys.argv.remove(ONLY_INCLUDED)
        only_included = functools.partial(lm_eval.tasks.TaskManager, include_defaults=False)
        lm_eval.tasks.TaskManager = only_included  # type: ignore[misc, assignment]
    cli_evaluate()


@dataclass(frozen=True)
class Job:
    """One model on its tasks.

    Args:
        items: task -> numbers of its items; every task has some.
        only_ours: no task is lm-eval's own.
        in_chat: prompts are rendered by the chat template.
        variables: of the environment, which name the data.
        identity: everything that decides the result (weights, data, tasks, items, versions): a finished
            job is used again only for the same.
    """

    name: str
    model: Path
    tasks: tuple[str, ...]
    items: dict[str, list[int]]
    task_dir: Path
    folder: Path
    device: str
    batch_size: int
    num_threads: int
    only_ours: bool
    in_chat: bool
    variables: dict[str, str]
    identity: dict[str, Any]

    def command(self, output_path: Path) -> list[str]:
        """The plain command of this job."""
        model_args: dict[str, Any] = {"pretrained": str(self.model), "dtype": "float32"}
        if (prefix := prefix_token_id(self.model)) is not None:
            model_args["prefix_token_id"] = prefix
        return [
            sys.executable, "-m", "modeling_foundry.evaluation.harness", "run",
            *([ONLY_INCLUDED] if self.only_ours else []),
            "--model", MODEL_NAME, "--model_args", json.dumps(model_args),
            "--include_path", str(self.task_dir), "--tasks", ",".join(self.tasks),
            "--samples", str(output_path / ITEMS_NAME), *(["--apply_chat_template"] if self.in_chat else []),
            "--device", self.device, "--batch_size", str(self.batch_size),
            "--output_path", str(output_path), "--log_samples",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """This process's environment with what names the data, and the job's share of the cores."""
        threads = str(self.num_threads)
        return {
            **os.environ,
            **self.variables,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
        }

    def is_complete(self) -> bool:
        """Whether this very job has run to its end."""
        try:
            receipt = json.loads((self.folder / RECEIPT_NAME).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return False  # no receipt, or one that a crash of the machine spoiled: measure again
        return receipt.get("identity") == self.identity


def prefix_token_id(model: Path) -> int | None:
    """Id of the document separator, which stands before a text in training.

    Without it lm-eval starts a text with the end-of-turn token of a chat tokenizer, which no text follows.
    """
    path = model / "tokenizer.json"
    try:
        added = json.loads(path.read_text(encoding="utf-8"))["added_tokens"]
    except (OSError, ValueError, KeyError) as error:
        raise FoundryError(f"{path}: not a tokenizer file; save the tokenizer beside the model") from error
    return next((token["id"] for token in added if token["content"] == END_OF_TEXT), None)


def last_line(log: str) -> str:
    """The last line that is no progress bar; a bar begins its line anew with a carriage return."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log)]
    return next((line for line in reversed(lines) if line and not PROGRESS_BAR.search(line)), "nothing")


class RunningJob:
    """A started job: its process, and its log to read progress from."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start = time.perf_counter()
        self.work = job.folder.with_name(f".{job.folder.name}.tmp")
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        write_atomically(self.work / ITEMS_NAME, json.dumps(job.items))
        self.log = open(self.work / LOG_NAME, "wb")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            job.command(self.work), stdout=self.log, stderr=subprocess.STDOUT, env=job.environment()
        )

    def progress(self) -> str:
        """What lm-eval's own progress bar last said."""
        with open(self.work / LOG_NAME, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 4096))
            found = PROGRESS.findall(log.read().decode(errors="replace"))
        return f"{found[-1][0]} {found[-1][1]}%" if found else "loading"

    def stop(self) -> None:
        """End the process without result."""
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def finish(self) -> float:
        """Move the output to its place; returns seconds.

        Raises:
            FoundryError: lm-eval failed, with the last line it said.
        """
        self.log.close()
        log = self.work / LOG_NAME
        if self.process.returncode != 0:
            kept = self.job.folder.with_name(f"{self.job.folder.name}.failed.log")
            said = last_line(log.read_text(encoding="utf-8", errors="replace"))
            os.replace(log, kept)
            status = self.process.returncode
            ended = f"was ended by signal {-status} after" if status < 0 else "ended with"
            raise FoundryError(f"{self.job.name}: lm_eval {ended} {said!r}; all it said is in {kept}")
        seconds = round(time.perf_counter() - self.start, 1)
        receipt = {
            "identity": self.job.identity,
            "command": self.job.command(self.job.folder),
            "seconds": seconds,
        }
        write_atomically(self.work / RECEIPT_NAME, json.dumps(receipt, indent=1) + "\n")
        shutil.rmtree(self.job.folder, ignore_errors=True)
        os.replace(self.work, self.job.folder)
        return seconds


def run_jobs(
    jobs: list[Job], num_parallel: int, console: Any, meanwhile: Callable[[], None]
) -> dict[str, float]:
    """Run what is not complete, ``num_parallel`` at a time; returns name -> seconds of what ran.

    Args:
        meanwhile: work of this process, done as soon as a place is free and no job waits for it.

    Raises:
        FoundryError: a job failed; finished ones keep their results.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    waiting = [job for job in jobs if not job.is_complete()]
    for job in jobs:
        if job not in waiting:
            console.print(f"lm_eval {job.name}: measured already")
    waiting.sort(key=lambda job: -len(job.tasks))  # the longest first, so that no place is idle at the end
    todo = [meanwhile]
    columns = (SpinnerColumn(), TextColumn("lm_eval {task.description}"), TimeElapsedColumn())
    seconds: dict[str, float] = {}
    running: dict[Any, RunningJob] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        try:
            while waiting or running or todo:
                while waiting and len(running) < num_parallel:
                    job = waiting.pop(0)
                    running[progress.add_task(job.name)] = RunningJob(job)
                if todo and len(running) < num_parallel:
                    todo.pop()()
                time.sleep(0.1)
                for row, started in list(running.items()):
                    progress.update(row, description=f"{started.job.name}: {started.progress()}")
                    if started.process.poll() is not None:
                        del running[row]
                        seconds[started.job.name] = started.finish()
                        progress.remove_task(row)
                        console.print(f"lm_eval {started.job.name}: {seconds[started.job.name]:.0f} s")
        finally:
            for started in running.values():
                started.stop()
    return seconds


if __name__ == "__main__":
    main()
