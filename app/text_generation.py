"""Text generation as TGI speaks it: what ``InferenceClient.text_generation`` sends to the root of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from chat_model import ChatModel
from fastapi import APIRouter, Request
from generation import Generation
from pydantic import BaseModel, ConfigDict
from refusals import answers_of
from request_types import Count, Flag, Number, Whole
from sampling import ModelError, Sampling, refuse_what_is_not_honoured
from starlette.concurrency import run_in_threadpool
from stream import Stream, first_piece, whole_text

ANSWER = "The text, or with `stream` its pieces as server-sent events."

DEFAULT_NEW_TOKENS = 100  # TGI's
FINISH_REASONS = {"end_of_text": "eos_token", "stop_string": "stop_sequence", "length": "length"}
# Parameters of TGI that change the answer and that this server does not honour, with values that ask for nothing.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "adapter_id": (None, ""), "best_of": (None, 1), "decoder_input_details": (None, False),
    "frequency_penalty": (None, 0), "grammar": (None,), "top_n_tokens": (None, 0), "typical_p": (None, 1),
    "watermark": (None, False),
}  # fmt: skip


class Parameters(BaseModel):
    """TGI's parameters; without any that asks for sampling the answer is greedy."""

    model_config = ConfigDict(extra="allow")
    details: Flag = None
    do_sample: Flag = None
    max_new_tokens: Count = None
    repetition_penalty: Number = None
    return_full_text: Flag = None
    seed: Whole = None
    stop: list[str] | None = None
    temperature: Number = None
    top_k: Whole = None
    top_p: Number = None
    truncate: Count = None

    def sampling(self) -> Sampling:
        """Raises RequestError for a parameter that this server does not honour."""
        refuse_what_is_not_honoured(self.model_extra or {}, NOT_HONOURED)
        samples = self.do_sample or any(
            value is not None for value in (self.temperature, self.top_k, self.top_p)
        )
        return Sampling(
            DEFAULT_NEW_TOKENS if self.max_new_tokens is None else self.max_new_tokens,
            (1.0 if self.temperature is None else self.temperature) if samples else 0.0,
            1.0 if self.top_p is None else self.top_p,
            self.top_k or 0,
            1.0 if self.repetition_penalty is None else self.repetition_penalty,
            self.seed,
            tuple(self.stop or ()),
        )


class TextRequest(BaseModel):
    """A prompt, to be gone on with."""

    inputs: str
    parameters: Parameters | None = None
    stream: Flag = None


def make_text_generation(chat: ChatModel) -> APIRouter:
    """``POST /`` around one loaded model."""
    routes = APIRouter()

    @routes.post("/", response_model=None, responses=answers_of(ANSWER, 422))
    async def text_generation(body: TextRequest, request: Request) -> Any:
        wanted = body.parameters or Parameters()
        sampling = wanted.sampling()
        ids = await run_in_threadpool(chat.text_ids, body.inputs, wanted.truncate)
        generation = chat.generate(ids, sampling)
        if body.stream:
            first, rest = await first_piece(request, generation)
            return Stream(_events(first, rest, generation), generation)
        text = await whole_text(request, generation)
        answer: dict[str, Any] = {"generated_text": (body.inputs if wanted.return_full_text else "") + text}
        if wanted.details:
            answer["details"] = _details(generation) | {"prefill": [], "tokens": _tokens(chat, generation)}
        return [answer]

    return routes


def _details(generation: Generation) -> dict[str, Any]:
    return {
        "finish_reason": FINISH_REASONS[generation.end], "generated_tokens": generation.num_tokens,
        "input_length": generation.ids.shape[1], "seed": generation.sampling.seed,
    }  # fmt: skip


def _tokens(chat: ChatModel, generation: Generation) -> list[dict[str, Any]]:
    """Ids and texts; ``logprob`` is null because it is not computed."""
    special = set(chat.tokenizer.all_special_ids)
    return [
        {"id": token, "text": chat.tokenizer.decode([token]), "logprob": None, "special": token in special}
        for token in generation.tokens
    ]


def _events(first: str, pieces: Iterator[str], generation: Generation) -> Iterator[str]:
    """Server-sent events: one a piece of text, which may be several tokens, so without an id; the last has it all."""

    def event(index: int, text: str, **end: Any) -> str:
        token = {"id": None, "text": text, "logprob": None, "special": False}
        content = {"index": index, "token": token, "generated_text": None, "details": None, **end}
        return f"data: {json.dumps(content)}\n\n"

    text, newest, index = "", first, 1
    try:
        for piece in pieces:
            yield event(index, newest)
            text, newest, index = text + newest, piece, index + 1
    except ModelError as error:
        yield f"data: {json.dumps({'error': str(error), 'error_type': 'generation'})}\n\n"
        return
    yield event(index, newest, generated_text=text + newest, details=_details(generation))
