"""Trackers beside the run log: trackio when it is installed, tensorboard and wandb by name; local until told.

transformers' own callbacks write to them.  A tracker keeps what it was sent: after a resume it may show a step
twice.  ``log.jsonl`` is the record.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import INTEGRATION_TO_CALLBACK

from ...run_record import plain_settings, plain_words
from ...settings import FoundryError

AUTO = "auto"
PROJECT = "modeling-foundry"
MODULES = {"trackio": ("trackio",), "wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}
ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # trackio itself reads these


class MaskedArguments:
    """Mix-in for TrainingArguments: the settings that trackers copy hold no credential."""

    def to_dict(self) -> dict[str, Any]:
        """As TrainingArguments', which masks keys that end in ``_token`` and no others."""
        return plain_settings(super().to_dict())  # type: ignore[misc]


def choose_trackers(report_to: str | list[str] | None) -> str | list[str]:
    """``report_to`` with ``auto`` replaced by trackio where it is installed.

    Raises:
        FoundryError: a tracker asked for by name is not known, or not installed.
    """
    names = [report_to] if isinstance(report_to, str) else list(report_to or [])
    if names == [AUTO]:
        return ["trackio"] if _is_installed("trackio") else "none"
    names = [] if names == ["none"] else names
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise FoundryError(f"report_to: {name!r} is no tracker; give trackio, tensorboard, wandb or none")
        if not _is_installed(name):
            raise FoundryError(
                f"report_to: {name} is not installed; pip install {name}, or give --report_to=none"
            )
    return names or "none"


def _is_installed(name: str) -> bool:
    """A tracker of neither name is left to transformers, which checks it itself."""
    return any(
        importlib.util.find_spec(module) is not None for module in MODULES.get(name, ("transformers",))
    )


def tracker_names(arguments: TrainingArguments) -> dict[str, str]:
    """``run_name`` and ``project`` where the user gave none."""
    run = Path(arguments.output_dir)
    names = {}
    if arguments.run_name is None:
        names["run_name"] = "-".join(part for part in (run.parent.name, run.name) if part)
    if arguments.project == "huggingface":  # transformers' default
        names["project"] = PROJECT
    return names


def keep_trackers_local(arguments: TrainingArguments) -> None:
    """Folders and offline mode of the trackers; whatever the user has set stays as it is.

    The command line they copy loses its credentials.
    """
    sys.argv[1:] = plain_words(sys.argv[1:])  # parsed already; wandb writes it into the run folder
    run = Path(arguments.output_dir)
    if "tensorboard" in arguments.report_to:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(run / "tensorboard"))
    if "wandb" in arguments.report_to:
        os.environ.setdefault("WANDB_MODE", "offline")
        os.environ.setdefault("WANDB_PROJECT", arguments.project)
        os.environ.setdefault("WANDB_DIR", str(run))
        run.mkdir(parents=True, exist_ok=True)  # wandb falls back to /tmp, silently, when it is not there


def tracker_line(arguments: TrainingArguments) -> str:
    """One line: which tracker is on, where it writes, or why there is none."""
    if not arguments.report_to:
        why = "" if _is_installed("trackio") else " (trackio is not installed)"
        return f"tracker: none{why}; {Path(arguments.output_dir) / 'log.jsonl'} has every figure"
    return "; ".join(f"tracker: {name}, {_place(name, arguments)}" for name in arguments.report_to)


def _place(name: str, arguments: TrainingArguments) -> str:
    run = f"project {arguments.project}, run {arguments.run_name}"
    if name == "trackio":
        elsewhere = [arguments.trackio_space_id, *(os.environ.get(key) for key in ELSEWHERE)]
        sent = next((place for place in elsewhere if place), None)
        return (
            f"{run}, sent to {sent.split('?')[0]}" if sent else f"{run}, on this machine only (trackio show)"
        )
    if name == "wandb":
        mode = os.environ.get("WANDB_MODE", "online")
        return f"project {os.environ.get('WANDB_PROJECT')}, run {arguments.run_name}, {mode}"
    return os.environ.get("TENSORBOARD_LOGGING_DIR", "") if name == "tensorboard" else run


def add_before_trackers(trainer: Trainer, callback: TrainerCallback) -> None:
    """Add a callback that sees the logs first, so that trackers get what it adds to them."""
    reporters = [INTEGRATION_TO_CALLBACK[name] for name in trainer.args.report_to]
    popped: list[Any] = [trainer.pop_callback(reporter) for reporter in reporters]
    for each in (callback, *popped):
        if each is not None:
            trainer.add_callback(each)
