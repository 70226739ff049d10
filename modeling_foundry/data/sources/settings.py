"""The settings of ``prepare_data.py manifest``."""

from __future__ import annotations

from dataclasses import dataclass

from ...settings import setting
from .manifest import SPLIT


@dataclass
class ManifestSettings:
    """Which files a corpus is made of."""

    source: str | None = setting("folder or fsspec URL (s3://, gs://, hf://) that holds the files", None)
    hub_name: str | None = setting(
        "instead of source: a dataset in the local Hub cache, ORGANIZATION/NAME", None
    )
    revision: str | None = setting("of hub_name; default what main was when it was fetched", None)
    include: str | None = setting("only paths that match this pattern, as in sample/100BT/*", None)
    output: str = setting("manifest to write", "runs/corpus/manifest.jsonl")
    split: str | None = setting("split of every file; default from folder and file names, else train", None)
    held_out_files: int = setting("train files to move to validation, where the corpus has none", 0)
    max_files: int | None = setting("only the first N files, to try things out", None)
    sample_files: int = setting("files of each kind whose rows are counted, for the estimates", 3)
    sha256: bool = setting("hash every file now; without it tokenize records the hashes", False)
    overwrite: bool = setting("replace another manifest", False)

    def __post_init__(self) -> None:
        if self.split is not None and not SPLIT.fullmatch(self.split):
            raise ValueError(f"split: expected letters, digits, - or _, found {self.split!r}")
        for name, lowest in (("held_out_files", 0), ("max_files", 1), ("sample_files", 0)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name}: expected at least {lowest}, found {value}")
