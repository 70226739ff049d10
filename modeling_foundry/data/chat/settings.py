"""The settings of ``prepare_data.py chat``."""

from __future__ import annotations

from dataclasses import dataclass

from ...settings import setting


@dataclass
class ChatSettings:
    """Which public dataset becomes which conversations or preference pairs, and where."""

    dataset: str = setting("alpaca, dolly, oasst1, … or its name on the Hub (docs/data.md lists them)")
    output_dir: str = setting("folder to write")
    file: str | None = setting(
        "local json, jsonl or parquet file of the same columns, instead of the Hub", None
    )
    revision: str | None = setting("commit or branch on the Hub; the newest when not given", None)
    max_samples: int | None = setting("keep N samples, drawn by the seed; all are checked", None)
    validation_fraction: float = setting("share of the samples held out; 0 holds out none", 0.01)
    seed: int = setting("decides the order, the samples kept and those held out", 0)
    system_prompt: str | None = setting("system message of the conversations that have none", None)
    language: str | None = setting("oasst1: only threads in this language, as en or pt-BR", None)
    max_malformed_fraction: float = setting("stop when a larger share of the rows is malformed", 0.05)
    overwrite: bool = setting("replace a folder prepared with other settings", False)

    def __post_init__(self) -> None:
        from .datasets import DATASETS

        by_repository = {dataset.repository.lower(): name for name, dataset in DATASETS.items()}
        self.dataset = by_repository.get(self.dataset.lower(), self.dataset)
        if self.dataset not in DATASETS:
            raise ValueError(f"dataset: expected one of {', '.join(DATASETS)}, found {self.dataset!r}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction: expected a number from 0 to below 1, found {self.validation_fraction}"
            )
        if not 0 <= self.max_malformed_fraction <= 1:
            raise ValueError(
                f"max_malformed_fraction: expected a number from 0 to 1, found {self.max_malformed_fraction}"
            )
        if self.max_samples is not None and self.max_samples < 1:
            raise ValueError(f"max_samples: expected at least 1, found {self.max_samples}")
        if self.seed < 0:  # Python's generator takes -1 for 1
            raise ValueError(f"seed: expected at least 0, found {self.seed}")
        if self.language is not None and DATASETS[self.dataset].convert is not None:
            raise ValueError(f"language: {self.dataset} does not say its rows' language; only oasst1 does")
        if self.file is not None and self.revision is not None:
            raise ValueError("revision: belongs to the Hub; expected none beside file")
