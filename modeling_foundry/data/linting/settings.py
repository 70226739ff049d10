"""The settings of ``prepare_data.py lint``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...settings import setting


@dataclass
class LintSettings:
    """Which samples are checked against which tokenizer and its chat template."""

    file: str = setting("JSON lines: messages (SFT) or prompt, chosen, rejected (preference)")
    tokenizer: str = setting("folder of the tokenizer, or of a model with one")
    chat_template_path: str | None = setting(
        "template of another file (.jinja) or tokenizer folder, as in sft.py", None
    )
    max_length: int = setting("tokens that training keeps of a row", 1024)
    truncation_mode: Literal["keep_start", "keep_end"] = setting(
        "which tokens those are, as in training", "keep_start"
    )
    num_samples: int = setting(
        "rows to render, spread evenly over the file; every row's format is checked", 1000
    )
    kind: Literal["auto", "sft", "preference"] = setting("auto: what the first row is", "auto")
    time_limit_s: float = setting("seconds the template may take for one row", 10.0)
    memory_limit_mb: int = setting("memory the template may take beside the tokenizer", 1024)

    def __post_init__(self) -> None:
        for name in ("max_length", "num_samples", "time_limit_s", "memory_limit_mb"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected more than 0, found {getattr(self, name)}")
