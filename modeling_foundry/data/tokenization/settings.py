"""The settings of ``prepare_data.py tokenize``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ...settings import setting


@dataclass
class TokenizeSettings:
    """How the files of a manifest become token shards."""

    manifest: str = setting("written by the manifest command", "runs/corpus/manifest.jsonl")
    output_dir: str = setting("folder to write", "runs/corpus/data")
    tokenizer: str | None = setting("folder with tokenizer.json, or a name in the local Hub cache", None)
    splits: list[str] | None = setting("splits of the manifest to tokenize; default all", None)
    text_key: str = setting("key or column that holds the text", "text")
    eos_token: str | None = setting("end-of-document token; default the tokenizer's eos_token", None)
    add_bos: bool = setting("begin every document with the token AutoTokenizer puts before a text", False)
    engine: Literal["auto", "reference"] = setting("reference: the tokenizers library alone, slower", "auto")
    workers: int = setting("processes on this machine; -1 is one a core", -1)
    executor: Literal["local", "slurm", "ray"] = setting("where datatrove runs the tasks", "local")
    num_tasks: int | None = setting(
        "tasks the files are dealt to; default four a worker on this machine, else one a file, at most 1,000",
        None,
    )
    slurm: dict[str, Any] | None = setting(
        "datatrove's SlurmPipelineExecutor: {partition: cpu, time: 24:00:00}", None
    )
    bad_rows: Literal["skip", "stop"] = setting("rows without usable text: count and go on, or stop", "skip")
    damaged_files: Literal["stop", "keep"] = setting(
        "a file that breaks off: stop when the others are done, or keep what came before the damage", "stop"
    )
    overwrite: bool = setting("replace a corpus of other settings", False)

    def __post_init__(self) -> None:
        if self.workers == 0 or self.workers < -1:
            raise ValueError(f"workers: expected -1 or at least 1, found {self.workers}")
        if self.num_tasks is not None and self.num_tasks < 1:
            raise ValueError(f"num_tasks: expected at least 1, found {self.num_tasks}")
        if self.tokenizer is None:
            raise ValueError("tokenizer: missing; expected a folder with tokenizer.json")
        if self.executor == "slurm" and not {"partition", "time"} <= (self.slurm or {}).keys():
            raise ValueError(
                "slurm: expected at least partition and time, as in {partition: cpu, time: 24:00:00}"
            )
