"""A loaded checkpoint that answers: one generation at a time, streamed, bounded in length, time and line."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from sampling import BusyError, RequestError, Sampling, check_text
from stop_strings import StopStrings, before_stop
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)
from transformers.utils.logging import disable_progress_bar

MAX_PROMPT_CHARACTERS = 50_000
MAX_TEMPLATE_CHARACTERS = 50_000
MAX_GENERATION_SECONDS = 120.0
MAX_WAITING_SECONDS = 60.0
MAX_REQUESTS = 16  # the one that runs and those that wait
TEMPLATE_SECONDS = 5.0
PROBE_CHAT = [{"role": role, "content": "text"} for role in ("user", "assistant", "user")]


class ChatModel:
    """Tokenizer and model of one checkpoint folder or Hub repository.

    Args:
        trust_remote_code: run model code that a Foundry checkpoint ships.  Not needed for a stock export, nor
            where the package ``modeling_foundry`` is installed; refused for any other kind of checkpoint.

    Raises:
        RequestError: code would be needed and is not trusted, or the chat template misbehaves.
        OSError, ValueError: no checkpoint there that transformers can load.
    """

    def __init__(
        self,
        checkpoint: str,
        device: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ) -> None:
        disable_progress_bar()
        model_type = _model_type(checkpoint, revision)
        if trust_remote_code and model_type != "foundry":
            raise RequestError(f"--trust-remote-code is for Foundry checkpoints only; this is {model_type!r}")
        if model_type == "foundry" and not trust_remote_code:
            _register_foundry()
        options = {"trust_remote_code": trust_remote_code, "revision": revision or "main"}
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.name = _display_name(checkpoint)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint, **options)
        probe_template(self.tokenizer)
        self.model = _whole_model(checkpoint, options).to(self.device).eval()
        self.num_parameters: int = self.model.num_parameters()
        self.max_positions: int = self.model.config.max_position_embeddings
        self.end_ids = _end_ids(self.model, self.tokenizer)
        self.one_at_a_time = threading.Lock()
        self.places = threading.BoundedSemaphore(MAX_REQUESTS)

    def chat_ids(self, messages: list[dict[str, str]]) -> torch.Tensor:
        """Prompt ids (1, length) of a conversation.

        Raises:
            RequestError: no chat template, or the conversation is too long for the model.
        """
        if self.tokenizer.chat_template is None:
            raise RequestError("this model has no chat template: use /generate")
        if sum(len(message["content"]) for message in messages) > MAX_PROMPT_CHARACTERS:
            raise RequestError(f"messages: at most {MAX_PROMPT_CHARACTERS} characters")
        for message in messages:
            check_text("messages", message["content"])
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        return self._fitting("messages", ids)

    def text_ids(self, prompt: str, num_last: int | None = None) -> torch.Tensor:
        """Prompt ids (1, length) of plain text, or its last ones; raises RequestError where it is empty or too long."""
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            raise RequestError(f"prompt: at most {MAX_PROMPT_CHARACTERS} characters")
        check_text("prompt", prompt)
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        if ids.shape[1] == 0:
            raise RequestError("prompt: expected some text")
        if num_last is not None:
            if num_last < 1:
                raise RequestError("truncate: expected 1 or more")
            ids = ids[:, -num_last:]
        return self._fitting("prompt", ids)

    def given_ids(self, ids: list[int]) -> torch.Tensor:
        """Prompt ids (1, length) of a prompt sent as ids; raises RequestError where they are not this model's."""
        vocab_size = self.model.config.vocab_size
        if not ids or not all(0 <= each < vocab_size for each in ids):
            raise RequestError(f"prompt: expected text, or token ids from 0 to {vocab_size - 1}")
        return self._fitting("prompt", torch.tensor([ids]))

    def _fitting(self, name: str, ids: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] >= self.max_positions:
            raise RequestError(
                f"{name}: {ids.shape[1]} tokens; this model holds {self.max_positions}, "
                "prompt and answer together"
            )
        return ids.to(self.device, torch.long)

    def generate(self, ids: torch.Tensor, sampling: Sampling) -> Generation:
        """An answer to iterate over; raises RequestError for sampling values that make no sense."""
        return Generation(self, ids, sampling.checked())


def _whole_model(checkpoint: str, options: dict[str, Any]) -> Any:
    """The model; raises ValueError where transformers would draw what is missing at random."""
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            checkpoint, use_safetensors=True, output_loading_info=True, **options
        )
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"weights that cannot be read: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"the weights lack {', '.join(missing[:3])}")
    return model


class _Stop(StoppingCriteria):
    """Ends a generation when its reader has left or its time is over."""

    def __init__(self) -> None:
        self.reader_left = threading.Event()
        self.deadline = math.inf

    def begin(self) -> None:
        """The time runs from here, where the waiting in line is over."""
        self.deadline = time.monotonic() + MAX_GENERATION_SECONDS

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        done = self.reader_left.is_set() or time.monotonic() > self.deadline
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)


class Generation:
    """One answer.  Iterating makes it and yields its text in pieces; after that the facts are known.

    Attributes:
        tokens: ids made, those that end the answer included.
        end: what ended it: the model's own end of text, a string of ``Sampling.stop``, or its length or time.
    """

    def __init__(self, chat: ChatModel, ids: torch.Tensor, sampling: Sampling) -> None:
        self.chat, self.ids, self.sampling = chat, ids, sampling
        self._stop = _Stop()
        self.tokens: list[int] = []
        self.end: Literal["end_of_text", "stop_string", "length"] = "length"

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def finish_reason(self) -> str:
        """OpenAI's word for the end."""
        return "length" if self.end == "length" else "stop"

    def leave(self) -> None:
        """Nobody reads on: the answer ends with its next token."""
        self._stop.reader_left.set()

    def __iter__(self) -> Iterator[str]:
        """Pieces of text; raises BusyError where the line is full or moves too slowly."""
        if not self.chat.places.acquire(blocking=False):
            raise BusyError("too many requests are waiting; try again in a moment")
        if not self.chat.one_at_a_time.acquire(timeout=MAX_WAITING_SECONDS):
            self.chat.places.release()
            raise BusyError("the requests before this one take too long; try again later")
        self._stop.begin()
        streamer = TextIteratorStreamer(self.chat.tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def work() -> None:
            # It gives the place back itself: a reader that is gone may never be told to close.
            try:
                self._generate(streamer)
            except BaseException as error:  # raised again below, in the thread of the reader
                failure.append(error)
                streamer.end()
            finally:
                self.chat.one_at_a_time.release()
                self.chat.places.release()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            pieces = (piece for piece in streamer if piece)
            yield from before_stop(pieces, self.sampling.stop)
        finally:
            self.leave()
            if thread is not threading.current_thread():  # the garbage collector closes this in any thread
                thread.join()
        if failure:
            raise failure[0]

    def _generate(self, streamer: TextIteratorStreamer) -> None:
        if self.sampling.seed is not None:
            torch.manual_seed(self.sampling.seed)  # generations never overlap
        prompt_tokens = self.ids.shape[1]
        room = self.chat.max_positions - prompt_tokens
        criteria: list[StoppingCriteria] = [self._stop]
        if self.sampling.stop:
            criteria.append(StopStrings(self.chat.tokenizer, self.sampling.stop, prompt_tokens))
        with torch.inference_mode():
            output = self.chat.model.generate(
                input_ids=self.ids,
                attention_mask=torch.ones_like(self.ids),
                max_new_tokens=min(self.sampling.max_new_tokens, room),
                eos_token_id=self.chat.end_ids or None,
                pad_token_id=self.chat.tokenizer.pad_token_id,
                use_cache=True,
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList(criteria),
                **self.sampling.for_generate(),
            )
        self.tokens = output[0, prompt_tokens:].tolist()
        if self.tokens and self.tokens[-1] in self.chat.end_ids:
            self.end = "end_of_text"
        elif any(isinstance(each, StopStrings) and each.is_found for each in criteria):
            self.end = "stop_string"


def _model_type(checkpoint: str, revision: str | None) -> str:
    """``model_type`` from ``config.json``, without building a configuration."""
    from transformers import PreTrainedConfig

    content, _ = PreTrainedConfig.get_config_dict(checkpoint, revision=revision or "main")
    if "model_type" not in content:
        raise RequestError(
            "no config.json with a model_type here; name a checkpoint folder or a Hub repository"
        )
    return content["model_type"]


def _register_foundry() -> None:
    """A Foundry checkpoint loads through the installed package; say so where there is none."""
    try:
        import modeling_foundry  # noqa: F401  (registers the Auto classes)
    except ImportError as error:
        raise RequestError(
            "this checkpoint has model_type foundry: install modeling-foundry, export it as a stock model "
            "with recipes/publish.py, or pass --trust-remote-code if you trust its code"
        ) from error


def _display_name(checkpoint: str) -> str:
    """``quickstart/dpo`` for ``…/quickstart/dpo/model``, else the folder's name, or the repository's."""
    path = Path(checkpoint)
    if not path.exists():
        return checkpoint
    *_, experiment, stage, name = ("", "", *path.resolve().parts)
    return f"{experiment}/{stage}" if name == "model" else name


def _end_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end an answer: the checkpoint's own, and the tokenizer's end of text."""
    own = model.generation_config.eos_token_id
    ids = set(own if isinstance(own, list) else [own]) | {tokenizer.eos_token_id}
    return sorted(ids - {None})


def probe_template(tokenizer: Any) -> None:
    """Refuse a chat template that is huge or does not come to an end.

    transformers renders templates in a sandbox, which stops attribute tricks but neither loops nor memory.
    The thread that may hang is a daemon: the program that gets this error ends, and the thread with it.
    """
    template = tokenizer.chat_template
    if template is None:
        return
    if len(json.dumps(template)) > MAX_TEMPLATE_CHARACTERS:
        raise RequestError(f"chat template: at most {MAX_TEMPLATE_CHARACTERS} characters")
    outcome: list[Any] = []

    def render() -> None:
        try:
            text = tokenizer.apply_chat_template(PROBE_CHAT, add_generation_prompt=True, tokenize=False)
            outcome.append(len(text))
        except Exception as error:  # reported below, in the thread that loads the model
            outcome.append(error)

    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    thread.join(TEMPLATE_SECONDS)
    if not outcome:
        raise RequestError(f"chat template: no result after {TEMPLATE_SECONDS:g} s on a three-line chat")
    if isinstance(outcome[0], Exception):
        raise RequestError(f"chat template: {' '.join(str(outcome[0]).split())[:200]}") from outcome[0]
    if outcome[0] > MAX_PROMPT_CHARACTERS:
        raise RequestError(f"chat template: {outcome[0]:,} characters for a three-line chat")
