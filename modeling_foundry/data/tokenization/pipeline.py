"""The tokenize command: a corpus folder from start, or from where it was, to its index.

::

    runs/corpus/data/
        tokenize.json          what is being made: nothing else may be made here
        tokenizer/             a copy of the tokenizer
        train/000000.ds ...    one shard a file of the manifest, with .index and .json
        failed/                one reason a file that could not be tokenized
        logs/                  datatrove's, one a task
        corpus.json            written last: the index of all shards
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...files import sha256_of_file, write_atomically
from ...settings import FoundryError
from ...terminal import console
from ..sources.manifest import Manifest, read_manifest
from ..tokenizer.class_check import TOKENIZER_FILES, refuse_another_class
from ..tokens.corpus import CORPUS_NAME, TOKENIZER_FOLDER, TokenCorpus, write_corpus
from ..tokens.prepared import differences
from ..tokens.shards import header_path
from ..tokens.verification import VERIFIED_NAME
from ..workers.executors import (
    number_of_local_tasks,
    number_of_tasks,
    run_on_ray,
    run_on_this_machine,
    submit_to_slurm,
)
from .document_marks import end_of_document, say_what_is_not_added, start_of_document
from .report import Shards, counted, print_report, without_document
from .settings import TokenizeSettings
from .shard_task import (
    FAILED_FOLDER,
    ShardTask,
    TokenizeFiles,
    TokenizeJob,
    encoder_of,
    finished_shard,
    shard_tasks,
)

PLAN_NAME = "tokenize.json"
# What may be changed until the index is written: no token of a shard depends on it.
POLICIES = ("bad_rows", "damaged_files")


def tokenize(settings: TokenizeSettings) -> Path:
    """Tokenize every file of the manifest that has no whole shard yet, then write the index.

    Raises:
        FoundryError: bad input, another corpus in the folder, or files that could not be tokenized.
    """
    folder, manifest = Path(settings.output_dir), read_manifest(settings.manifest)
    tasks = shard_tasks(manifest.of_splits(settings.splits))
    tokenizer = tokenizer_folder(str(settings.tokenizer))
    eos_token_id = end_of_document(settings, tokenizer)
    prefix = start_of_document(settings, tokenizer)
    plan = plan_of(settings, manifest, tasks, tokenizer, eos_token_id, prefix)
    if settings.overwrite or not (folder / CORPUS_NAME).is_file():  # nothing to do takes no seconds
        refuse_another_class(tokenizer, TOKENIZER_FILES)
        say_what_is_not_added(console, tokenizer, eos_token_id, prefix)
    if start(folder, plan, settings.overwrite):
        console.print(f"tokenize: complete already, {folder} (nothing to do)")
        return folder
    copy_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
    sha256 = plan["tokenizer_sha256"]
    encoder_of(folder, settings.engine, sha256)  # here, so that the workers find its proof
    job = TokenizeJob(
        folder.resolve(), manifest.root, settings.text_key, eos_token_id, sha256, settings.engine,
        settings.bad_rows, settings.damaged_files, plan_hash(plan), prefix,
    )  # fmt: skip
    left = [task for task in tasks if finished_shard(job, task) is None]
    if len(left) < len(tasks):
        console.print(f"tokenize: going on, {len(tasks) - len(left):,} of {len(tasks):,} shards are whole")
    if left and not run(settings, job, left):
        return folder
    seal(folder, plan, job, tasks)
    return folder


def tokenizer_folder(name: str) -> Path:
    """The folder that holds ``tokenizer.json``: as given, or of a name in the local Hub cache.

    Raises:
        FoundryError: neither.
    """
    if Path(name).is_dir():
        if not (Path(name) / "tokenizer.json").is_file():
            raise FoundryError(f"{name}: no tokenizer.json here; give the folder of a fast tokenizer")
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True, allow_patterns=list(TOKENIZER_FILES)))
    except Exception as error:
        raise FoundryError(
            f"tokenizer: {name} is neither a folder nor in the local Hub cache; give a folder with tokenizer.json "
            "(`make data` makes runs/quickstart/data/tokenizer)"
        ) from error


def plan_of(
    settings: TokenizeSettings, manifest: Manifest, tasks: list[ShardTask], tokenizer: Path, eos_token_id: int,
    prefix: tuple[int, ...] = (),
) -> dict[str, Any]:  # fmt: skip
    """All that decides what the folder holds; how many workers make it does not."""
    # A key of its own only where there is one: corpora of before stay what they are.
    start = {"begins_with": list(prefix)} if prefix else {}
    return start | {
        "manifest": manifest.fingerprint, "num_files": len(tasks),
        "splits": sorted({task.file.split for task in tasks}),
        "tokenizer_sha256": sha256_of_file(tokenizer / "tokenizer.json"), "eos_token_id": eos_token_id,
        "text_key": settings.text_key, "bad_rows": settings.bad_rows,
        "damaged_files": settings.damaged_files, "engine": settings.engine,
    }  # fmt: skip


def plan_hash(plan: dict[str, Any]) -> str:
    """A short name of what a plan says of the tokens, kept in each shard."""
    decisive = {key: value for key, value in plan.items() if key not in POLICIES}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]


def start(folder: Path, plan: dict[str, Any], overwrite: bool) -> bool:
    """Make the folder ready; whether this very corpus is complete there already.

    Raises:
        FoundryError: it holds, or was becoming, another corpus.
    """
    path = folder / PLAN_NAME
    try:
        if path.is_file() and overwrite:
            clear(folder)
        elif not path.is_file() and folder.exists() and any(map(is_foreign, folder.iterdir())):
            raise FoundryError(f"{folder}: holds other files; give an empty or new --output_dir")
        if not path.is_file():
            write_plan(path, plan)
            return False
    except OSError as error:
        raise FoundryError(
            f"{folder}: cannot write there ({error.strerror}); give another --output_dir"
        ) from error
    found = read_plan(path)
    is_complete = (folder / CORPUS_NAME).is_file()
    if not is_complete and found.keys() == plan.keys() and plan_hash(found) == plan_hash(plan):
        write_plan(path, plan)
        return False
    if changed := differences(found, plan):
        raise FoundryError(
            f"{folder}: holds another corpus ({changed}); give another --output_dir, or --overwrite=true"
        )
    return is_complete and bool(TokenCorpus.open(folder))


def is_foreign(path: Path) -> bool:
    """Whether a file in a folder without a plan is not one of ours, as one killed while it wrote the plan left."""
    return not fnmatchcase(path.name, temporary_of(PLAN_NAME))


def temporary_of(name: str) -> str:
    """Pattern of what a killed ``write_atomically`` leaves beside a file."""
    return f".{name}.*.tmp"


def write_plan(path: Path, plan: dict[str, Any]) -> None:
    """Say what the folder is becoming."""
    write_atomically(path, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")


def read_plan(path: Path) -> dict[str, Any]:
    """What the folder is known to be becoming.

    Raises:
        FoundryError: the file cannot be read as that.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise FoundryError(
            f"{path}: not valid JSON; remove the folder or give another --output_dir"
        ) from error


def clear(folder: Path) -> None:
    """Remove what this command writes, the index first and the plan last, and nothing else."""
    (folder / CORPUS_NAME).unlink(missing_ok=True)
    splits = read_plan(folder / PLAN_NAME).get("splits", [])
    for name in [*splits, TOKENIZER_FOLDER, FAILED_FOLDER, "logs", "tokenizer_proof"]:
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / VERIFIED_NAME).unlink(missing_ok=True)
    (folder / PLAN_NAME).unlink()


def copy_tokenizer(source: Path, target: Path) -> None:
    """The files AutoTokenizer reads; the same ones again are left alone."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            content = (source / name).read_bytes()
            if not (target / name).is_file() or (target / name).read_bytes() != content:
                write_atomically(target / name, content)


def run(settings: TokenizeSettings, job: TokenizeJob, tasks: list[ShardTask]) -> bool:
    """Run the executor; False when the work was handed to SLURM and is not done yet."""
    if settings.executor == "local":
        number = number_of_local_tasks(len(tasks), settings.workers, settings.num_tasks)
    else:
        number = number_of_tasks(len(tasks), settings.num_tasks)
    step, logs = TokenizeFiles(job, tasks), job.folder / "logs"
    if settings.executor == "slurm":
        job_id = submit_to_slurm([step], number, settings.slurm or {}, logs, "tokenize")
        console.print(
            f"tokenize: SLURM job {job_id} with {number:,} tasks makes {len(tasks):,} shards; "
            "run the same command again when it has ended, to write the index"
        )
        return False
    execute = run_on_ray if settings.executor == "ray" else run_on_this_machine
    with progress(job.folder, tasks):
        try:
            execute([step], number, settings.workers, logs)
        except OSError as error:
            reason = f"{error.filename}: {error.strerror}" if error.filename else error
            raise FoundryError(
                f"{settings.output_dir}: tokenizing stopped ({reason}); mend that and run the same command again"
            ) from error
    return True


@contextmanager
def progress(folder: Path, tasks: list[ShardTask]) -> Iterator[None]:
    """A bar over the bytes of the source files, moved by the shards that appear."""
    done, waiting = threading.Event(), dict.fromkeys(tasks)
    total = sum(task.file.num_bytes for task in tasks)
    bar = tqdm(total=total, desc="tokenize", unit="B", unit_scale=True, mininterval=0.5)

    def watch() -> None:
        while waiting:
            last = done.wait(1)
            for task in [t for t in waiting if header_path(folder / t.shard).is_file()]:
                bar.update(task.file.num_bytes)
                del waiting[task]
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        bar.close()


def seal(folder: Path, plan: dict[str, Any], job: TokenizeJob, tasks: list[ShardTask]) -> None:
    """Write the index once every file has its shard, and say what was counted.

    Raises:
        FoundryError: files have none, the first is named with its reason; or a split is without a document.
    """
    headers = {task: finished_shard(job, task) for task in tasks}
    missing = [task for task, header in headers.items() if header is None]
    if missing:
        first = missing[0]
        failure = folder / first.failure
        reason = json.loads(failure.read_text())["reason"] if failure.is_file() else "its task did not end"
        raise FoundryError(
            f"{folder}: {len(missing):,} of {len(tasks):,} files have no shard; the first, {first.file.path}: "
            f"{reason.removeprefix(first.file.path + ': ')}; the reasons of all are in {folder / FAILED_FOLDER}"
        )
    splits: dict[str, Shards] = {}
    for task, header in headers.items():
        if header is not None:
            splits.setdefault(task.file.split, []).append((task.shard, header))
    for name, shards in splits.items():
        if not any(header.num_documents for _, header in shards):
            raise FoundryError(
                f"{folder}: split {name}: none of its files gave a document: {without_document(shards)}; "
                "look at --text_key, or mend the files"
            )
    for leftover in leftovers(folder, [*splits, TOKENIZER_FOLDER]):
        leftover.unlink()
    counts = {name: counted([header for _, header in splits[name]]) for name in sorted(splits)}
    write_corpus(folder, splits, {"plan": plan, "counts": counts})
    print_report(console, folder, counts, splits)


def leftovers(folder: Path, names: Iterable[str]) -> list[Path]:
    """What killed runs left half written."""
    patterns = [f"{name}/.*.tmp" for name in names]
    patterns += map(temporary_of, (PLAN_NAME, CORPUS_NAME, VERIFIED_NAME))
    return [path for pattern in patterns for path in folder.glob(pattern)]
