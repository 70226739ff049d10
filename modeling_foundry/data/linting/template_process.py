"""A chat template held in a child process, with limits on time, memory and output."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ...settings import FoundryError

PROGRAM = Path(__file__).with_name("template_renderer.py")
START_LIMIT_S = 180.0
MAX_CHARACTERS = 4_000_000
# One thread and few arenas: each reserves address space, which counts against the limit.
SMALL = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "CUDA_VISIBLE_DEVICES": "",
}  # fmt: skip


class TemplateLimitError(Exception):
    """The template went over a limit; its process is gone."""


class TemplateProcess:
    """Renders samples one by one; use it in a ``with`` block.

    Args:
        tokenizer: folder that AutoTokenizer loads, with its chat template.
        time_limit_s: for one sample, tokens included.
        memory_bytes: what the process may grow by after it loaded the tokenizer.
        max_length: tokens of a decoded sample; None decodes all.
    """

    def __init__(
        self, tokenizer: str | Path, time_limit_s: float, memory_bytes: int, max_length: int | None
    ) -> None:
        self.tokenizer, self.time_limit_s = str(Path(tokenizer).resolve()), time_limit_s
        self.order = {
            "folder": self.tokenizer,
            "memory_bytes": memory_bytes,
            "max_characters": MAX_CHARACTERS,
            "max_length": max_length,
        }
        self.slowest_s = 0.0
        self.received = b""

    def __enter__(self) -> TemplateProcess:
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            env={**os.environ, **SMALL},
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def start(self) -> dict[str, Any]:
        """Load the tokenizer; returns what the checks must know of it.

        Raises:
            FoundryError: there is no tokenizer that loads.
        """
        try:
            facts = self._ask(self.order, START_LIMIT_S)
        except TemplateLimitError as error:
            raise FoundryError(f"{self.tokenizer}: its tokenizer {error}") from error
        if "failed" in facts:
            raise FoundryError(f"{self.tokenizer}: no tokenizer that AutoTokenizer loads ({facts['failed']})")
        return facts

    def render(self, sample: dict[str, Any], decode: bool = False) -> dict[str, Any]:
        """Token ids, trained tokens and more of one sample; ``error`` where the template refuses it.

        Raises:
            TemplateLimitError: too slow, too large, or against the sandbox.
        """
        before = time.monotonic()
        answer = self._ask({"sample": sample, "decode": decode}, self.time_limit_s)
        self.slowest_s = max(self.slowest_s, time.monotonic() - before)
        if "fatal" in answer:
            raise TemplateLimitError(answer["fatal"])
        return answer

    def _ask(self, question: dict[str, Any], limit_s: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise TemplateLimitError(self._last_words()) from None
        return json.loads(self._line(time.monotonic() + limit_s, limit_s))

    def _line(self, until: float, limit_s: float) -> bytes:
        """The next line of the child, waited for no longer than allowed."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.received:
                if not selector.select(max(0.0, until - time.monotonic())):
                    self.process.kill()
                    raise TemplateLimitError(f"takes longer than {limit_s:g} s")
                part = os.read(self.process.stdout.fileno(), 1 << 20)
                if not part:
                    raise TemplateLimitError(self._last_words())
                self.received += part
        line, self.received = self.received.split(b"\n", 1)
        return line

    def _last_words(self) -> str:
        """How the child ended, with the last line it wrote."""
        code = self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read()[-2000:].decode(errors="replace").splitlines()
        return f"ended its process (exit code {code}{': ' + lines[-1] if lines else ''})"
