"""The settings of ``prepare_data.py verify`` and ``inspect``."""

from __future__ import annotations

from dataclasses import dataclass

from ...settings import setting


@dataclass
class VerifySettings:
    """Which corpus to check, and against what."""

    data_dir: str = setting("folder written by prepare or tokenize", "runs/corpus/data")
    model: str | None = setting(
        "checkpoint folder or config.json: its embedding must hold every id, its tokenizer be the same", None
    )
    workers: int = setting("threads that hash; -1 is one a core", -1)

    def __post_init__(self) -> None:
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers: expected -1 or at least 1, found {self.workers}")


@dataclass
class InspectSettings:
    """Which corpus to describe."""

    data_dir: str = setting("folder written by tokenize", "runs/corpus/data")
    split: str = setting("split to describe", "train")
    sequence_length: int = setting("tokens of the packed sequence that is shown", 256)
    seed: int = setting("of the shuffle the shown sequence comes from", 0)
    sample_shards: int = setting("shards whose document lengths are read", 200)
    plot: str | None = setting("folder for pictures; none without it", None)
    compare: list[str] | None = setting("other corpora whose tokens are drawn beside this one's", None)

    def __post_init__(self) -> None:
        for name in ("sequence_length", "sample_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, found {getattr(self, name)}")
        if self.compare and self.plot is None:
            raise ValueError(
                "compare: other corpora stand in the pictures alone; give plot, the folder for them"
            )
