"""The settings of ``prepare_data.py`` without a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...settings import setting


@dataclass
class DataSettings:
    """What prepare_data.py makes and where."""

    output_dir: str = setting("folder to write", "runs/quickstart/data")
    source: Literal["standard_library", "text_file"] = setting(
        "where the text comes from", "standard_library"
    )
    text_file: str | None = setting("plain-text file; implies source: text_file", None)
    vocab_size: int = setting("ids of the tokenizer, special tokens included", 2048)
    held_out_fraction: float = setting("share of module families, or of the text file's end, held out", 0.1)
    include_tests: bool = setting(
        "standard library: its test folders too (31 MB, where they are installed)", False
    )
    max_modules: int | None = setting("standard library: only the first N modules, to try things out", None)
    overwrite: bool = setting("replace a folder prepared with other settings", False)

    def __post_init__(self) -> None:
        if self.text_file is not None:
            self.source = "text_file"
        if self.source == "text_file" and self.text_file is None:
            raise ValueError("text_file: missing; expected a path, because source is text_file")
        if not 0 < self.held_out_fraction < 1:
            raise ValueError(
                f"held_out_fraction: expected a number between 0 and 1, found {self.held_out_fraction}"
            )
        if self.vocab_size < 300:
            raise ValueError(
                f"vocab_size: expected at least 300 (256 bytes and the special tokens), found {self.vocab_size}"
            )
        if self.max_modules is not None and self.max_modules < 2:
            raise ValueError(f"max_modules: expected at least 2, found {self.max_modules}")
