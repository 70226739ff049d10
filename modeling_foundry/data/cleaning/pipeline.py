"""``prepare_data.py clean``: quality filters, deduplication and decontamination of a corpus, with the books kept.

datatrove does the work, in stages whose tasks are marked as they are completed; ``clean.json``, written last,
says for each step what went in, what came out, and what was removed for which reason.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...settings import FoundryError
from ..sources.input_files import InputFiles, find_files
from ..tokens.mapped_files import check_open_files
from ..tokens.prepared import differences
from .accounting import REPORT_NAME
from .settings import CleanSettings

# Part of what a folder is known by: raise it when the same settings come to give other documents.
CLEANING_VERSION = 3
MANIFEST_NAME = "clean.json"
# What an unfinished folder is going to hold; gone when clean.json is there.
PLAN_NAME = "cleaning.json"
FOLDERS = ("documents", "removed", "logs", "work")
DECISIVE_KEYS = (
    "text_key", "id_key", "filters", "filter_options", "language", "dedup",
    "decontaminate", "decontaminate_mode", "ngram_size",
)  # fmt: skip
NEEDED_PACKAGES = ("datatrove", "spacy", "regex", "xxhash", "orjson", "pyarrow", "zstandard")


def clean(settings: CleanSettings) -> Path:
    """Make the folder the settings describe; do nothing when it is complete already.

    Interrupted and run again, it goes on with the tasks that were not complete.

    Raises:
        FoundryError: a package, file, filter or task is missing, or the folder holds other documents.
    """
    versions = _versions()
    folder, plan = Path(settings.output_dir), _plan(settings)
    if others := plan.files.not_read:
        print(f"clean: {len(others):,} files of other kinds are not read: {', '.join(others[:3])}")
    if settings.dedup != "none":
        check_open_files(plan.files.num_tasks)
    content = content_of(settings, plan, versions)
    if not settings.overwrite and _is_complete(folder, content):
        print(f"clean: complete already, {folder} (nothing to do)")
        return folder
    try:
        _start(folder, content, settings.overwrite)
        plan.write(folder / "work")
    except OSError as error:
        raise FoundryError(
            f"{folder}: cannot write there ({error.strerror}); give another --output_dir"
        ) from error
    _run(folder, settings, plan, content)
    return folder


# ------------------------------------------------------------------------------------------------ plan


@dataclass(frozen=True)
class Plan:
    """What was found before anything is written: the input's files and the evaluation items as JSON lines."""

    files: InputFiles
    items: str

    def write(self, work: Path) -> None:
        """Lists that datatrove's workers read."""
        for kind, paths in self.files.paths.items():
            write_atomically(work / f"{kind}.paths", "".join(f"{path}\n" for path in paths))
        write_atomically(work / "evaluation_items.jsonl", self.items)


def _versions() -> dict[str, str]:
    """Versions of what decides the result.

    Raises:
        FoundryError: a package is not installed.
    """
    try:
        found = {name: version(name) for name in NEEDED_PACKAGES}
    except PackageNotFoundError as error:
        raise FoundryError(
            f"clean: package {error.name} is not installed; pip install 'modeling-foundry[clean]'"
        ) from error
    return {name: found[name] for name in ("datatrove", "spacy")}


def _plan(settings: CleanSettings) -> Plan:
    from .decontamination import items_as_lines
    from .evaluation_items import read_items
    from .quality_filters import build_filter, check_language, unused_options

    unused_options(settings.filters, settings.filter_options)
    check_language(settings.language)
    for name in settings.filters:
        build_filter(name, settings.filter_options.get(name, {}), settings.language)
    files = find_files(settings.input, Path(settings.output_dir))
    items = read_items(settings.decontaminate, settings.eval_text_keys, settings.task_dir)
    return Plan(files, items_as_lines(items))


def content_of(settings: CleanSettings, plan: Plan, versions: dict[str, str]) -> dict[str, Any]:
    """All that decides which documents a folder holds; where it is, and how many workers made it, do not."""
    return {
        "cleaning": CLEANING_VERSION,
        **versions,
        "input": plan.files.description(),
        **{name: getattr(settings, name) for name in DECISIVE_KEYS},
        "evaluation_items_sha256": hashlib.sha256(plan.items.encode()).hexdigest(),
    }


# ------------------------------------------------------------------------------------------------ folder


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not an object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise FoundryError(f"{path}: not written by clean; remove it or give another --output_dir") from error
    return found


def _is_complete(folder: Path, content: dict[str, Any]) -> bool:
    """Whether the folder holds exactly these documents, whole.

    Raises:
        FoundryError: it holds others, finished or not, or a file that is missing or changed.
    """
    manifest, unfinished = _read_json(folder / MANIFEST_NAME), _read_json(folder / PLAN_NAME)
    found = manifest.get("settings", {}) if manifest is not None else unfinished
    if found is None:
        return False
    if changed := differences(found, content):
        raise FoundryError(
            f"{folder}: holds documents cleaned otherwise ({changed}); "
            "give another --output_dir, or --overwrite=true to replace them"
        )
    if manifest is None:
        return False
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise FoundryError(f"{path}: missing or changed since; clean again with --overwrite=true")
    _remove_work(folder)
    return True


def _start(folder: Path, content: dict[str, Any], overwrite: bool) -> None:
    """Make ready to write, or to go on; never in a folder whose parts something else wrote."""
    ours = (folder / MANIFEST_NAME).is_file() or (folder / PLAN_NAME).is_file()
    foreign = next((name for name in FOLDERS if (folder / name).exists()), None)
    if foreign and not ours:
        raise FoundryError(
            f"{folder / foreign}: was not written by clean; give another --output_dir or move it away"
        )
    if overwrite and ours:
        # Ours still, and gone on with by no settings, should the removal be interrupted.
        write_atomically(folder / PLAN_NAME, json.dumps({"being": "replaced"}) + "\n")
        (folder / MANIFEST_NAME).unlink(missing_ok=True)
        for name in FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / REPORT_NAME).unlink(missing_ok=True)
    elif ours:
        print(f"clean: going on with {folder}, which was interrupted")
    write_atomically(folder / PLAN_NAME, json.dumps(content, indent=1) + "\n")


def _remove_work(folder: Path) -> None:
    (folder / PLAN_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder / "work", ignore_errors=True)


# ------------------------------------------------------------------------------------------------ run


def _run(folder: Path, settings: CleanSettings, plan: Plan, content: dict[str, Any]) -> None:
    """The stages in their order, then the books."""
    from ..workers.stages import run_stage, statistics_of
    from .accounting import close_books, print_books
    from .deduplication import deduplication_stages

    target = folder / ("documents" if settings.dedup == "none" else "work/filtered")
    first = _first_stage(folder, settings, plan, target)
    run_stage(first, folder / "logs", settings.workers)
    statistics = statistics_of(folder / "logs", first)
    if settings.dedup != "none":
        parts = (target, folder / "work", folder / "documents", folder / "removed")
        for stage in deduplication_stages(settings.dedup, *parts, settings.language):
            run_stage(stage, folder / "logs", settings.workers)
            statistics |= statistics_of(folder / "logs", stage)
    manifest = close_books(folder, settings, statistics)
    write_atomically(
        folder / MANIFEST_NAME,
        json.dumps({"settings": content, **manifest}, indent=1, ensure_ascii=False) + "\n",
    )
    _remove_work(folder)
    print_books(folder, manifest)


def _first_stage(folder: Path, settings: CleanSettings, plan: Plan, target: Path) -> Any:
    """Reading, the filters and decontamination, in one pass.

    Before deduplication, so that of two near duplicates the one that holds no evaluation item is kept.
    """
    from ..workers.stages import Counted, RemovedWriter, Stage, TaskWriter
    from .readers import reader_of

    steps: list[Any] = []
    for kind, paths in plan.files.paths.items():
        listed, malformed = folder / "work" / f"{kind}.paths", folder / "removed" / "malformed"
        writer = RemovedWriter(malformed, "malformed", prefix=f"{kind}_")
        if paths:
            keys = (settings.text_key, settings.id_key)
            steps.append(reader_of(kind, plan.files.root, listed, *keys, writer))
    for name, step in _filters(folder, settings):
        step.exclusion_writer = RemovedWriter(folder / "removed" / name, name)
        steps.append(Counted(step, name))
    return Stage("filter", [*steps, TaskWriter(target)], plan.files.num_tasks)


def _filters(folder: Path, settings: CleanSettings) -> Sequence[tuple[str, Any]]:
    from ..workers.stages import TaskWriter
    from .decontamination import NGramFilter
    from .quality_filters import build_filter

    named = [
        (name, build_filter(name, settings.filter_options.get(name, {}), settings.language))
        for name in settings.filters
    ]
    if settings.decontaminate:
        items, mode = str(folder / "work" / "evaluation_items.jsonl"), settings.decontaminate_mode
        passages = TaskWriter(folder / "removed" / "decontamination_passages") if mode == "cut" else None
        named.append(("decontamination", NGramFilter(items, settings.ngram_size, mode, None, passages)))
    return named
