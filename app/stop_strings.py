"""Strings that end an answer: found while it is made, and kept out of its text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria

MOST_TOKENS_A_CHARACTER = 4  # of byte-level BPE: one a byte of UTF-8
MORE_TOKENS = 8  # those that decode to nothing, and one whose character begins before


def before_stop(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of the strings; what could yet become one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        places = [place for stop in stops if (place := held.find(stop)) >= 0]
        if places:
            if min(places):
                yield held[: min(places)]
            return
        num_safe = len(held) - max((_begun(held, stop) for stop in stops), default=0)
        if num_safe:
            yield held[:num_safe]
            held = held[num_safe:]
    if held:
        yield held


def _begun(text: str, stop: str) -> int:
    """Length of the longest beginning of ``stop`` that ``text`` ends with."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)


class StopStrings(StoppingCriteria):
    """Ends a generation of one row with the token that completes one of the strings.

    transformers' own (``stop_strings``) first looks at every token of the vocabulary, for each new set of strings.

    Args:
        prompt_tokens: tokens of the row that are not part of the answer.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt_tokens: int) -> None:
        self.tokenizer, self.stops, self.prompt_tokens = tokenizer, stops, prompt_tokens
        self.num_tokens = MOST_TOKENS_A_CHARACTER * max(map(len, stops)) + MORE_TOKENS
        self.is_found = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        newest = input_ids[0, self.prompt_tokens :][-self.num_tokens :]
        text = self.tokenizer.decode(newest, skip_special_tokens=True)
        self.is_found = any(stop in text for stop in self.stops)
        return torch.full((len(input_ids),), self.is_found, dtype=torch.bool, device=input_ids.device)
