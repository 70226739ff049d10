"""The keys of a ``publish.yaml``.  A token is never one of them: it comes from the Hub login."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class PublishSettings:
    """What is exported, under which name, and whether it is pushed."""

    model: str = field(metadata={"help": "finished checkpoint folder"})
    output_dir: str = field(metadata={"help": "folder to write the export to"})
    name: str = field(metadata={"help": "title of the model card"})
    description: str = _help("one paragraph for the model card", "")
    training_data: str = _help("what the model was trained on, for the model card", "not stated")
    evaluation_dir: str | None = _help("folder written by evaluate.py; its table goes into the card", None)
    license: str = _help("licence identifier of the weights", "mit")
    format: Literal["auto", "qwen3", "llama", "foundry"] = _help(
        "auto is a stock architecture where the components allow one", "auto"
    )
    push_to_hub: bool = _help("upload the export to repo_id", False)
    repo_id: str | None = _help("user-or-organisation/name on the Hub", None)
    private: bool = _help("create the repository as a private one", False)

    def __post_init__(self) -> None:
        if self.push_to_hub and self.repo_id is None:
            raise ValueError("repo_id: missing; push_to_hub needs it, as user-or-organisation/name")
        if self.repo_id is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo_id):
            raise ValueError(f"repo_id: expected user-or-organisation/name, found {self.repo_id!r}")
