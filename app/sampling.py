"""How the next token is drawn, where an answer ends, and what is said to who asks for something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

LARGEST_NUMBER = 2**31  # of a count; what is larger asks for nothing else
SEEDS = range(-(2**63), 2**64)  # OpenAI's are signed, TGI's are not; torch takes both

MAX_NEW_TOKENS = 2048
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 200


class RequestError(ValueError):
    """A request that cannot be answered; the message says what would be right and names no path."""


class BusyError(RuntimeError):
    """Too many requests are waiting."""


class TooLongError(RequestError):
    """A conversation or a prompt that the model cannot hold."""


class ModelError(RuntimeError):
    """The model failed on a request; the log has the traceback, the message names no path."""


class NoMemoryError(ModelError):
    """A request for which memory does not suffice."""


def number(value: Any) -> float:
    """A number of any source (slider, JSON, setting) as the float that transformers wants.

    Raises:
        ValueError: text, a truth value, nothing, or no finite number.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError("expected a finite number")
    try:
        found = float(value)
    except OverflowError:  # JSON's integers have no end
        found = math.inf
    if not math.isfinite(found):
        raise ValueError("expected a finite number")
    return found


def whole_number(value: Any) -> int:
    """A number as an int, as ``number``: JavaScript and JSON do not tell 50.0 from 50.

    Raises:
        ValueError: what ``number`` refuses, or a fraction.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if not number(value).is_integer():
        raise ValueError("expected a whole number")
    return int(value)


def truth(value: Any) -> bool:
    """A truth value as such, null as false; raises ValueError for numbers and words."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def refuse_what_is_not_honoured(asked: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise RequestError for a field that would change the answer and that this server would ignore.

    Args:
        neutral: field -> values that ask for nothing.  True is not taken for 1, nor false for 0.
    """
    for name, values in neutral.items():
        value = asked.get(name)
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
            raise RequestError(f"{name}: not supported by this server")


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
        """The same in the types that ``generate`` wants and within bounds: a length is clamped.

        Raises:
            RequestError: a value that makes no sense; it names the field and what is accepted.
        """
        temperature = _within("temperature", self.temperature, 0, 2)
        penalty = _within("repetition_penalty", self.repetition_penalty, 1, 2)
        top_p = _named("top_p", number, self.top_p)
        top_k = _named("top_k", whole_number, self.top_k)
        if not 0 < top_p <= 1:
            raise RequestError("top_p: expected more than 0, at most 1")
        if top_k < 0:
            raise RequestError("top_k: expected 0 (off) or more")
        seed = None if self.seed is None else _named("seed", whole_number, self.seed)
        if seed is not None and seed not in SEEDS:
            raise RequestError("seed: expected -2^63 to 2^64 - 1")
        _check_stops(self.stop)
        tokens = _named("max_new_tokens", whole_number, self.max_new_tokens)
        return replace(
            self, max_new_tokens=min(max(1, tokens), MAX_NEW_TOKENS), temperature=temperature, top_p=top_p,
            top_k=min(top_k, LARGEST_NUMBER), repetition_penalty=penalty, seed=seed,
        )  # fmt: skip

    def for_generate(self) -> dict[str, Any]:
        """Arguments of ``generate``; the checkpoint's own sampling settings do not come through."""
        if self.temperature == 0:
            return {"do_sample": False, "num_beams": 1, "repetition_penalty": self.repetition_penalty}
        return {
            "do_sample": True, "num_beams": 1, "temperature": self.temperature, "top_p": self.top_p,
            "top_k": self.top_k, "repetition_penalty": self.repetition_penalty,
        }  # fmt: skip


def _named(name: str, convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from error


def _within(name: str, value: Any, lowest: float, highest: float) -> float:
    found = _named(name, number, value)
    if not lowest <= found <= highest:
        raise RequestError(f"{name}: expected {lowest} to {highest}")
    return found


def _check_stops(stops: tuple[str, ...]) -> None:
    if len(stops) > MAX_STOPS or not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in stops):
        raise RequestError(
            f"stop: expected at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters"
        )
    for stop in stops:
        check_text("stop", stop)
