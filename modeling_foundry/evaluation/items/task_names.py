"""Names of tasks, known without lm-eval's index of 14,000 files, which takes longer than the quickstart's tasks."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...settings import FoundryError

NAMED = re.compile(r"^(task|group|tag)\s*:[ \t]*([^\s#\[]+)[ \t]*(?:#.*)?$", re.MULTILINE)
LISTED = re.compile(r"^tag\s*:\s*\n((?:\s*-\s*\S+\s*\n)+)", re.MULTILINE)


def names_in(folder: Path) -> dict[str, set[Path]]:
    """Name of a task, group or tag -> folders of the files that say so."""
    found: dict[str, set[Path]] = {}
    for path in folder.rglob("*.yaml"):
        text = path.read_text(encoding="utf-8", errors="replace")
        listed = re.findall(r"-\s*(\S+)", "".join(LISTED.findall(text)))
        for name in [*(name for _, name in NAMED.findall(text)), *listed]:
            found.setdefault(name.strip("\"'"), set()).add(path.parent)
    return found


@functools.lru_cache(maxsize=1)
def their_names() -> dict[str, set[Path]]:
    """:func:`names_in` lm-eval's own folder: a second for 14,000 files."""
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise FoundryError("evaluate: lm-eval is not installed; pip install 'modeling-foundry[eval]'")
    return names_in(Path(spec.origin).parent / "tasks")


def require_names(tasks: Sequence[str], task_dir: Path) -> bool:
    """Whether all tasks are those of ``task_dir``, none lm-eval's own.

    Raises:
        FoundryError: no such folder, or a task that is in neither, with the names nearest to it.
    """
    if not task_dir.is_dir():
        raise FoundryError(f"{task_dir}: task_dir: expected a folder of lm-eval task files")
    own = names_in(task_dir)
    if all(name in own for name in tasks):
        return True
    known = own.keys() | their_names().keys()
    for name in tasks:
        if name not in known:
            near = get_close_matches(name, sorted(known), n=3) or sorted(own)
            raise FoundryError(
                f"tasks: {name}: no task of {task_dir} or of lm-eval; nearest: {', '.join(near)}"
            )
    return False


def load_tasks(tasks: Sequence[str], task_dir: Path) -> dict[str, dict[str, Any]]:
    """What was asked for -> its tasks by name: one, or those of a group.

    Of lm-eval's own only the folders are read that name them.

    Raises:
        FoundryError: a task cannot be loaded: its data are not there or not what it expects.
    """
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # the jobs' logs have its warnings
    own = names_in(task_dir)
    folders = sorted({folder for name in tasks if name not in own for folder in their_names()[name]})
    near = TaskManager(include_path=[*folders, task_dir], include_defaults=False)
    loaded: dict[str, dict[str, Any]] = {}
    for name in tasks:
        try:
            members = near.load(name)["tasks"]
        except (KeyError, ValueError) as error:
            if name in own or "not a registered" not in str(error):
                raise _failed(name, error, name in own) from error
            members = TaskManager(include_path=task_dir).load(name)[
                "tasks"
            ]  # a member lives in another folder
        except Exception as error:  # a task is a program of its own: it may fail with anything
            raise _failed(name, error, name in own) from error
        for member in members:
            if any(member in others for others in loaded.values()):
                raise FoundryError(f"tasks: {member}: asked for twice, the second time by {name}")
        _require_harmless(members)
        loaded[name] = members
    return loaded


def _require_harmless(tasks: dict[str, Any]) -> None:
    """Raises FoundryError for a task that runs what a model wrote, or asks about pictures: lm-eval refuses it later."""
    for name, task in tasks.items():
        for what in ("UNSAFE_CODE", "MULTIMODAL"):
            if getattr(task, what, False):
                raise FoundryError(f"tasks: {name}: is marked {what}, which is not measured here")


def _failed(name: str, error: Exception, is_own: bool) -> FoundryError:
    """What a task said; those of ``task_dir`` name file and line themselves."""
    reason = " ".join(str(error).split())[:400]
    if is_own and isinstance(error, (ValueError, FileNotFoundError)):
        return FoundryError(reason)
    return FoundryError(f"tasks: {name}: lm-eval cannot load it ({type(error).__name__}: {reason})")
