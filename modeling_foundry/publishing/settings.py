"""The keys of a ``publish.yaml``.  A token is never one of them: it comes from the Hub login."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal

from ..settings import setting
from .hub_names import check_language, check_license, check_repository

HUB_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{16,}")
UNPUBLISHED = "unpublished"  # for base_model; the word none would be null
NAMES_FOR_THE_HUB: tuple[tuple[str, Callable[[str], None]], ...] = (
    ("repo_id", check_repository),
    ("space_repo_id", check_repository),
    ("base_model", check_repository),
    ("license", check_license),
    ("languages", check_language),
)


@dataclass
class PublishSettings:
    """What is exported, under which name, and whether it is pushed."""

    model: str = field(metadata={"help": "finished checkpoint folder"})
    output_dir: str = field(
        metadata={"help": "folder to write to: the export goes into model/, a Space into space/"}
    )
    name: str = field(metadata={"help": "title of the model card"})
    description: str = setting("one paragraph for the model card", "")
    training_data: str = setting("what the model was trained on, for the model card", "not stated")
    limitations: str = setting("what the model cannot do, for the model card, beside what holds for all", "")
    languages: list[str] = field(
        default_factory=list, metadata={"help": "language codes of the Hub, such as en or code"}
    )
    example: str = setting("a message that shows what the model does, for the model card", "Who are you?")
    evaluation_dir: str | None = setting("folder written by evaluate.py; its table goes into the card", None)
    license: str | None = setting(
        "licence identifier of the weights; default the base model's, or mit where run.json shows that they were "
        "trained from scratch", None
    )  # fmt: skip
    base_model: str | None = setting(
        "name on the Hub of the model this one was fine-tuned from, or unpublished; default what the run records say",
        None,
    )
    format: Literal["auto", "qwen3", "llama", "foundry"] = setting(
        "auto is a stock architecture where the components allow one", "auto"
    )
    push_to_hub: bool = setting("upload the export to repo_id", False)
    repo_id: str | None = setting("user-or-organisation/name on the Hub", None)
    space_repo_id: str | None = setting("user-or-organisation/name of a Space with the chat page", None)
    private: bool = setting("create the repositories as private ones", False)

    def __post_init__(self) -> None:
        for item in fields(self):
            if HUB_TOKEN.search(str(getattr(self, item.name)).encode()):
                raise ValueError(
                    f"{item.name}: holds a Hub token; remove it and use `hf auth login`, or HF_TOKEN in the "
                    "environment"
                )
        if self.push_to_hub and self.repo_id is None:
            raise ValueError("repo_id: missing; push_to_hub needs it, as user-or-organisation/name")
        if self.space_repo_id is not None and self.repo_id is None:
            raise ValueError("repo_id: missing; a Space loads its model from there")
        if not self.name.strip() or len(self.name.splitlines()) > 1:
            raise ValueError(f"name: expected one line of text, found {self.name!r}")
        for name, check in NAMES_FOR_THE_HUB:
            given = getattr(self, name)
            for value in given if isinstance(given, list) else [given]:
                if value not in (None, UNPUBLISHED):
                    try:
                        check(value)
                    except ValueError as error:
                        raise ValueError(f"{name}: {error}") from error
