"""Text of an answer as its tokens come, whatever it is written in."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

REPLACEMENT = "\ufffd"  # what bytes that are no character yet decode to
MOST_PENDING = 3  # bytes of an unfinished character of UTF-8, so tokens too


class TextPieces(BaseStreamer):
    """Iterate over what ``generate`` says in another thread: each token's text as soon as its characters are whole.

    transformers' own streamer waits for a blank, so base64 or a long name came in one piece at its end.  A few tokens
    before the newest are decoded with it: decoders drop a blank at the beginning of a text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.is_prompt = True
        self.tokens: list[int] = []  # those decoded together: the context, then what is being said
        self.num_context = 0
        self.num_said = 0  # characters of their text

    def put(self, value: torch.Tensor) -> None:
        """Ids of the prompt (1, length), once; then the newest id, (1,)."""
        if self.is_prompt:
            self.is_prompt = False
            return
        self.tokens.extend(value.reshape(-1).tolist())
        text = self._decoded(self.tokens)
        num_pending = len(text) - len(text.rstrip(REPLACEMENT))
        if len(self.tokens) - self.num_context > MOST_PENDING:  # more than a character's: bytes that are none
            self._say(text[: len(text) - min(num_pending, MOST_PENDING)])
        else:
            self._say(text[: len(text) - num_pending])
        if not num_pending:
            self.tokens = self.tokens[self.num_context :]
            self.num_context = len(self.tokens)
            self.num_said = len(self._decoded(self.tokens))

    def end(self) -> None:
        """What is left is said as it is."""
        self._say(self._decoded(self.tokens))
        self.pieces.put(None)

    def _say(self, text: str) -> None:
        if len(text) > self.num_said:
            self.pieces.put(text[self.num_said :])
            self.num_said = len(text)

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces.get, None)
