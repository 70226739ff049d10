"""The keys of an ``evaluate.yaml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..settings import setting

OUR_TASKS = (
    "stdlib_bits_per_byte",
    "stdlib_summary_choice",
    "stdlib_summary_preference",
    "stdlib_summary_generate",
)


@dataclass
class EvaluationSettings:
    """Which models are measured, on what, and how much of it."""

    models: list[str] = field(
        metadata={"help": "name=folder in the order of training; each is compared with the one before it"}
    )
    data_dir: str = setting("folder written by prepare_data.py", "runs/quickstart/data")
    heldout_file: str | None = setting(
        "JSON lines with text, for stdlib_bits_per_byte; data_dir's heldout.jsonl without it", None
    )
    prompts_file: str | None = setting(
        "held-out chat file (messages) whose questions the stop rate asks; data_dir's sft_heldout.jsonl without it",
        None,
    )
    output_dir: str = setting("folder of the results and the report", "runs/quickstart/eval")
    task_dir: str = setting("folder of lm-eval task files", "eval_tasks")
    tasks: list[str] = field(
        default_factory=lambda: list(OUR_TASKS), metadata={"help": "lm-eval tasks, ours or its own"}
    )
    untrained: list[str] = field(
        default_factory=list,
        metadata={"help": "models of random weights: they get untrained_tasks and no prompts, and are grey"},
    )
    untrained_tasks: list[str] = field(
        default_factory=lambda: list(OUR_TASKS[:2]), metadata={"help": "tasks of an untrained model"}
    )
    limits: dict[str, int] = field(
        default_factory=dict,
        metadata={
            "help": "task: items at most, drawn by the seed (lm-eval's own: the first); all without one"
        },
    )
    max_text_bytes: int = setting(
        "bits per byte: whole documents, this many bytes in all, by the seed", 300_000
    )
    too_long: Literal["leave_out", "refuse"] = setting(
        "an item that does not fit the context of every model: left out for all alike, or refused",
        "leave_out",
    )
    num_stop_prompts: int = setting("prompts of the stop rate; 0 leaves it out", 128)
    max_new_tokens: int = setting("an answer longer than this is cut", 48)
    batch_size: int = setting("sequences at a time", 32)
    parallel_models: int = setting("models measured at the same time; 1 on a GPU", 2)
    device: Literal["auto", "cpu", "cuda"] = setting("auto is cuda where there is one", "auto")
    seed: int = setting("which items the limits draw", 1337)

    def __post_init__(self) -> None:
        for name in ("max_text_bytes", "max_new_tokens", "batch_size", "parallel_models"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.num_stop_prompts < 0:
            raise ValueError(f"num_stop_prompts: expected at least 0, found {self.num_stop_prompts}")
        for task, limit in self.limits.items():
            if not isinstance(limit, int) or isinstance(limit, bool) or limit < 2:
                raise ValueError(f"limits: {task}: expected a whole number from 2, found {limit!r}")
        names = list(self.model_folders())
        for name in self.untrained:
            if name not in names:
                raise ValueError(f"untrained: {name}: no such model; models are {', '.join(names)}")

    def model_folders(self) -> dict[str, Path]:
        """Name -> checkpoint folder, in order.

        Raises:
            ValueError: an entry is not ``name=folder`` or a name stands twice.
        """
        folders: dict[str, Path] = {}
        for entry in self.models:
            name, separator, folder = entry.partition("=")
            if not (separator and folder and name.replace("_", "").replace("-", "").isalnum()):
                raise ValueError(f"models: expected name=folder, found {entry!r}")
            if name in folders:
                raise ValueError(f"models: {name}: given twice")
            folders[name] = Path(folder)
        if not folders:
            raise ValueError("models: expected at least one name=folder")
        return folders

    def experiment(self) -> str:
        """What the models come from: ``x`` of ``runs/x/<stage>/model``, else the folder's own name."""
        return ", ".join(dict.fromkeys(_experiment_of(folder) for folder in self.model_folders().values()))


def _experiment_of(folder: Path) -> str:
    *_, experiment, _, name = ("", "", *folder.resolve().parts)
    return experiment.strip("/") or name if name in ("model", "initial_model") else name
