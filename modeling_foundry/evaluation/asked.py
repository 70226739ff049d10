"""Everything that will be asked of the models, fixed and checked before the first of them is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..settings import FoundryError
from .items.prompts import Prompt, drawn_prompts, prompts_file
from .items.selection import file_of, select_items
from .items.task_names import load_tasks, require_names
from .measuring.context_room import (
    STOP_RATE,
    LeftOut,
    items_without_room,
    prompts_without_room,
    readers_of,
    refuse,
    require_chat,
    say,
)
from .measuring.stopping import stop_token_ids
from .settings import EvaluationSettings

if TYPE_CHECKING:  # imported where it is used: it takes seconds
    from .measuring.language_model import RequestReader


@dataclass
class Asked:
    """Tasks, items and prompts.

    Args:
        tasks: lm-eval's, by name, groups taken apart.
        tasks_of: model -> names of its tasks.
        items: task -> numbers of the items that are measured.
        readers: model -> its tokenizer and context.
        left_out: items and prompts that are measured on no model.
    """

    tasks: dict[str, Any]
    tasks_of: dict[str, list[str]]
    only_ours: bool
    items: dict[str, list[int]]
    readers: dict[str, RequestReader]
    prompts: list[Prompt] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def data_variables(settings: EvaluationSettings) -> dict[str, str]:
    """What tells the tasks where their data are."""
    return {"FOUNDRY_DATA_DIR": settings.data_dir, "FOUNDRY_HELDOUT_FILE": settings.heldout_file or ""}


@contextmanager
def in_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The variables set for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]


def what_is_asked(settings: EvaluationSettings, console: Any) -> Asked:
    """Read the data of every task, draw the items and leave out what does not fit.

    Raises:
        FoundryError: a task, a file, a line or an item is not what it should be.
    """
    only_ours = require_names(settings.tasks, Path(settings.task_dir))
    prompts = drawn_prompts(settings) if _answering(settings) and settings.num_stop_prompts else []
    with in_environment(data_variables(settings)):
        groups = load_tasks(settings.tasks, Path(settings.task_dir))
    tasks = {name: task for members in groups.values() for name, task in members.items()}
    items = select_items(_limits(settings, groups), settings, tasks)
    readers = readers_of(settings.model_folders())
    asked = Asked(tasks, _tasks_of(settings, groups), only_ours, items, readers, prompts)
    leave_out(asked, settings)
    if settings.too_long == "refuse":
        refuse(asked.left_out)
    say(asked.left_out, console)
    if asked.prompts:
        console.print(f"stop rate: {len(asked.prompts)} questions of {prompts_file(settings)}", markup=False)
    return asked


def _answering(settings: EvaluationSettings) -> list[str]:
    """Models that answer the prompts of the stop rate."""
    return [name for name in settings.model_folders() if name not in settings.untrained]


def _limits(settings: EvaluationSettings, groups: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Task -> items at most; the limit of a group is that of each of its tasks."""
    limits: dict[str, int] = {}
    members = {name: [name] for tasks in groups.values() for name in tasks}
    members |= {group: list(tasks) for group, tasks in groups.items()}
    for name, limit in settings.limits.items():
        if name not in members:
            near = get_close_matches(name, members, n=1) or list(members)
            raise FoundryError(f"limits: {name}: not one of tasks; expected one of them, as {near[0]}")
        limits |= dict.fromkeys(members[name], limit)
    return limits


def _tasks_of(settings: EvaluationSettings, groups: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Model -> names of its tasks, groups taken apart."""
    every = [name for tasks in groups.values() for name in tasks]
    wanted = {name for group in settings.untrained_tasks for name in groups.get(group, {group: None})}
    fewer = [name for name in every if name in wanted]
    if settings.untrained and not fewer:
        raise FoundryError(f"untrained_tasks: expected some of tasks ({', '.join(settings.tasks)})")
    models = settings.model_folders()
    return {model: fewer if model in settings.untrained else every for model in models}


def leave_out(asked: Asked, settings: EvaluationSettings) -> None:
    """Take what does not fit every model out of the items and the prompts.

    Raises:
        FoundryError: nothing is left of a task, or of the prompts.
    """
    for name, task in asked.tasks.items():
        readers = {model: asked.readers[model] for model, tasks in asked.tasks_of.items() if name in tasks}
        if task.OUTPUT_TYPE != "loglikelihood_rolling":
            for model, reader in readers.items():
                require_chat(model, reader)
        chosen = asked.items[name]
        gone = items_without_room(task, name, chosen, readers, file_of(name, settings))
        asked.items[name] = [item for item in chosen if item not in {one.item for one in gone}]
        asked.left_out += gone
        _require_some(name, asked.items[name], gone)
    if not asked.prompts:
        return
    readers = {model: asked.readers[model] for model in _answering(settings)}
    for model, reader in readers.items():
        stop_token_ids(settings.model_folders()[model], reader.tokenizer)
    gone = prompts_without_room(asked.prompts, readers, settings.max_new_tokens)
    places = {one.item for one in gone}
    asked.prompts = [prompt for place, prompt in enumerate(asked.prompts) if place not in places]
    asked.left_out += gone
    _require_some(f"{STOP_RATE} (max_new_tokens: {settings.max_new_tokens})", asked.prompts, gone)


def _require_some(name: str, kept: list[Any], gone: list[LeftOut]) -> None:
    if not kept:
        more = f"; {gone[0].where}: {gone[0].reason}" if gone else ""
        raise FoundryError(f"{name}: no item is left that every model can be measured on{more}")
