"""How the next token is drawn, where an answer ends, and what is said to who asks for something else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

MAX_NEW_TOKENS = 2048
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200


class RequestError(ValueError):
    """A request that cannot be answered; the message says what would be right and names no path."""


class BusyError(RuntimeError):
    """Too many requests are waiting."""


def check_text(name: str, text: str) -> None:
    """Raise RequestError for text that is none: JSON can hold half of a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{name}: not text that UTF-8 can hold (character {error.start})") from error


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.  Temperature 0 is greedy; top_k 0 is off; ``stop`` are strings that end it."""

    max_new_tokens: float = 128
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: float = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def checked(self) -> Sampling:
        """The same within bounds: a length is clamped.

        Raises:
            RequestError: a value that makes no sense; it names the field and what is accepted.
        """
        for name in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or (isinstance(value, float) and not math.isfinite(value)):
                raise RequestError(f"{name}: expected a finite number")
        if not 0 <= self.temperature <= 2:
            raise RequestError("temperature: expected 0 to 2")
        if not 0 < self.top_p <= 1:
            raise RequestError("top_p: expected more than 0, at most 1")
        if self.top_k < 0:
            raise RequestError("top_k: expected 0 (off) or more")
        if not 1 <= self.repetition_penalty <= 2:
            raise RequestError("repetition_penalty: expected 1 to 2")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise RequestError("seed: expected 0 to 2^63 - 1")
        if len(self.stop) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in self.stop):
            raise RequestError(
                f"stop: expected at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
            )
        for stop in self.stop:
            check_text("stop", stop)
        tokens = min(max(1, int(self.max_new_tokens)), MAX_NEW_TOKENS)
        return replace(self, max_new_tokens=tokens, top_k=min(int(self.top_k), 2**31))

    def for_generate(self) -> dict[str, Any]:
        """Arguments of ``generate``; the checkpoint's own sampling settings do not come through."""
        if self.temperature == 0:
            return {"do_sample": False, "num_beams": 1, "repetition_penalty": self.repetition_penalty}
        return {
            "do_sample": True, "num_beams": 1, "temperature": self.temperature, "top_p": self.top_p,
            "top_k": self.top_k, "repetition_penalty": self.repetition_penalty,
        }  # fmt: skip
