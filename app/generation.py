"""One answer: made in a thread, one at a time, streamed, bounded in length, time and line."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from sampling import BusyError, ModelError, NoMemoryError, Sampling
from stop_strings import StopStrings, before_stop
from text_pieces import TextPieces
from transformers import StoppingCriteria, StoppingCriteriaList

if TYPE_CHECKING:
    from chat_model import ChatModel

MAX_GENERATION_SECONDS = 120.0
MAX_WAITING_SECONDS = 60.0
LOOK_SECONDS = 0.05  # who waits looks so often whether it is the next, and its reader still there
logger = logging.getLogger(__name__)


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

    def _wait_in_line(self) -> bool:
        """Whether it is this one's turn; it is nobody's whose reader has left.  Raises BusyError after a while."""
        deadline = time.monotonic() + MAX_WAITING_SECONDS
        line = self.chat.line
        line.append(self)
        try:
            while not self._stop.reader_left.is_set():
                seconds = max(0.0, min(LOOK_SECONDS, deadline - time.monotonic()))
                if line[0] is not self:
                    self._stop.reader_left.wait(seconds)
                elif self.chat.one_at_a_time.acquire(timeout=seconds):
                    return True
                if time.monotonic() > deadline:
                    raise BusyError("the requests before this one take too long; try again later")
            return False
        finally:
            line.remove(self)

    def __iter__(self) -> Iterator[str]:
        """Pieces of text.

        Raises:
            BusyError: the line is full or moves too slowly.
            ModelError: the model failed; the log has the traceback.
        """
        if not self.chat.places.acquire(blocking=False):
            raise BusyError("too many requests are waiting; try again in a moment")
        is_turn = False
        try:
            is_turn = self._wait_in_line()
        finally:
            if not is_turn:
                self.chat.places.release()
        if not is_turn:
            return
        self._stop.begin()
        streamer = TextPieces(self.chat.tokenizer)
        failure: list[BaseException] = []

        def work() -> None:
            # It gives the place back itself: a reader that is gone may never be told to close.
            try:
                self._generate(streamer)
            except BaseException as error:  # told below, in the thread of the reader
                failure.append(error)
                streamer.end()
            finally:
                self.chat.one_at_a_time.release()
                self.chat.places.release()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            yield from before_stop(streamer, self.sampling.stop)
        finally:
            self.leave()
            if thread is not threading.current_thread():  # the garbage collector closes this in any thread
                thread.join()
        if failure:
            raise _told(failure[0]) from failure[0]

    def _generate(self, streamer: TextPieces) -> None:
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


def _told(failure: BaseException) -> ModelError:
    """What a client may read of a failure, which goes to the log."""
    logger.error("a generation failed", exc_info=failure)
    if isinstance(failure, (MemoryError, torch.OutOfMemoryError)):
        return NoMemoryError("not enough memory for this request; ask for fewer tokens, or try again later")
    return ModelError(
        f"the model failed on this request ({type(failure).__name__}); the server's log says where"
    )
