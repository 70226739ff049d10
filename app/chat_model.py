"""A loaded checkpoint that answers: one generation at a time, streamed, bounded in length and time."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

MAX_PROMPT_CHARACTERS = 50_000
MAX_NEW_TOKENS = 2048
MAX_SECONDS = 120.0
MAX_WAITING = 16


class RequestError(ValueError):
    """A request that cannot be answered; the message says what would be right and names no path."""


class BusyError(RuntimeError):
    """Too many requests are waiting."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn.  Temperature 0 is greedy."""

    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int = 0
    repetition_penalty: float = 1.0

    def checked(self) -> Sampling:
        """The same within bounds: lengths are clamped, what makes no sense is refused."""
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise RequestError(f"{name}: expected a finite number")
        if not 0 <= self.temperature <= 2:
            raise RequestError("temperature: expected 0 to 2")
        if not 0 < self.top_p <= 1:
            raise RequestError("top_p: expected more than 0, at most 1")
        if self.top_k < 0:
            raise RequestError("top_k: expected 0 (off) or more")
        if not 1 <= self.repetition_penalty <= 2:
            raise RequestError("repetition_penalty: expected 1 to 2")
        tokens = min(max(1, self.max_new_tokens), MAX_NEW_TOKENS)
        return Sampling(tokens, self.temperature, self.top_p, self.top_k, self.repetition_penalty)

    def for_generate(self) -> dict[str, Any]:
        if self.temperature == 0:
            return {"do_sample": False, "repetition_penalty": self.repetition_penalty}
        return {
            "do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k,
            "repetition_penalty": self.repetition_penalty,
        }  # fmt: skip


@dataclass
class Outcome:
    """How a generation ended: ``stop`` is the model's own end, ``length`` is a cut."""

    finish_reason: str = "length"


class _Stop(StoppingCriteria):
    """Ends a generation when its reader has left or its time is over, and notes the newest token."""

    def __init__(self, seconds: float) -> None:
        self.left = threading.Event()
        self.deadline = time.monotonic() + seconds
        self.newest_token: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.newest_token = int(input_ids[0, -1])
        done = self.left.is_set() or time.monotonic() > self.deadline
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


class ChatModel:
    """Tokenizer and model of one checkpoint folder or Hub repository.

    Args:
        trust_remote_code: run model code that the checkpoint ships.  Not needed for a stock export, nor for a
            Foundry checkpoint where the package ``modeling_foundry`` is installed.
    """

    def __init__(self, checkpoint: str, device: str = "auto", trust_remote_code: bool = False) -> None:
        if not trust_remote_code:
            register_foundry_if_needed(checkpoint)
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.name = Path(checkpoint).name if Path(checkpoint).exists() else checkpoint
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
        self.model = model.to(self.device).eval()
        self.max_positions = self.model.config.max_position_embeddings
        self._one_at_a_time = threading.Lock()
        self._places = threading.BoundedSemaphore(MAX_WAITING)

    @property
    def num_parameters(self) -> int:
        return self.model.num_parameters()

    def chat_ids(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """Prompt ids (1, length) of a conversation; the oldest turns go where it does not fit."""
        if self.tokenizer.chat_template is None:
            raise RequestError("this model has no chat template: use /generate")
        if sum(len(message["content"]) for message in messages) > MAX_PROMPT_CHARACTERS:
            raise RequestError(f"messages: at most {MAX_PROMPT_CHARACTERS} characters")
        while True:
            ids = self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            if ids.shape[1] < self.max_positions or len(messages) == 1:
                return self._fitting(ids)
            messages = messages[1:]

    def text_ids(self, prompt: str) -> torch.Tensor:
        """Prompt ids (1, length) of plain text."""
        if not prompt:
            raise RequestError("prompt: expected some text")
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise RequestError(f"prompt: at most {MAX_PROMPT_CHARACTERS} characters")
        return self._fitting(self.tokenizer(prompt, return_tensors="pt")["input_ids"])

    def _fitting(self, ids: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] >= self.max_positions:
            raise RequestError(f"prompt: {ids.shape[1]} tokens; this model reads fewer than {self.max_positions}")
        return ids.to(self.device)

    def stream(self, ids: torch.Tensor, sampling: Sampling, outcome: Outcome | None = None) -> Iterator[str]:
        """Pieces of the answer as they are made; ``outcome`` is filled in at the end.

        Raises:
            RequestError: sampling values that make no sense.
            BusyError: the waiting line is full.
        """
        sampling = sampling.checked()
        if not self._places.acquire(blocking=False):
            raise BusyError("too many requests are waiting; try again in a moment")
        try:
            with self._one_at_a_time:
                yield from self._generate(ids, sampling, outcome or Outcome())
        finally:
            self._places.release()

    def _generate(self, ids: torch.Tensor, sampling: Sampling, outcome: Outcome) -> Iterator[str]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=MAX_SECONDS)
        stop, failure = _Stop(MAX_SECONDS), []
        room = self.max_positions - ids.shape[1]
        arguments = {
            "input_ids": ids, "attention_mask": torch.ones_like(ids), "streamer": streamer,
            "max_new_tokens": min(sampling.max_new_tokens, room), "pad_token_id": self.tokenizer.pad_token_id,
            "stopping_criteria": StoppingCriteriaList([stop]), **sampling.for_generate(),
        }  # fmt: skip

        def work() -> None:
            try:
                with torch.inference_mode():
                    self.model.generate(**arguments)
            except Exception as error:  # handed to the reader below, who waits on the streamer
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            stop.left.set()
            thread.join()
        if failure:
            raise failure[0]
        if stop.newest_token in self._end_ids():
            outcome.finish_reason = "stop"

    def _end_ids(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]


def register_foundry_if_needed(checkpoint: str) -> None:
    """A Foundry checkpoint loads through the installed package; say so where there is none."""
    config = Path(checkpoint) / "config.json"
    if not config.is_file() or json.loads(config.read_text()).get("model_type") != "foundry":
        return
    try:
        import modeling_foundry  # noqa: F401  (registers the Auto classes)
    except ImportError as error:
        raise RequestError(
            "this checkpoint has model_type foundry: install modeling-foundry, export it as a stock model with "
            "recipes/publish.py, or pass --trust-remote-code if you trust its code"
        ) from error
