"""Text generation as TGI speaks it: what ``InferenceClient.text_generation`` sends to the root of a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from chat_model import ChatModel, Generation
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sampling import BusyError, RequestError, Sampling
from stream import Stream

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
    details: bool | None = None
    do_sample: bool | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float | None = None
    return_full_text: bool | None = None
    seed: int | None = None
    stop: list[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    truncate: int | None = None

    def sampling(self) -> Sampling:
        """Raises RequestError for a parameter that this server does not honour."""
        for name, neutral in NOT_HONOURED.items():
            if (self.model_extra or {}).get(name) not in neutral:
                raise RequestError(f"{name}: not supported by this server")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise RequestError("max_new_tokens: expected 1 or more")
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
    parameters: Parameters = Parameters()
    stream: bool = False


def make_text_generation(chat: ChatModel) -> APIRouter:
    """``POST /`` around one loaded model."""
    routes = APIRouter()

    @routes.post("/", response_model=None)
    def text_generation(body: TextRequest) -> Any:
        try:
            return _answer(chat, body)
        except RequestError as error:
            return JSONResponse({"error": str(error), "error_type": "validation"}, 422)
        except BusyError as error:
            return JSONResponse({"error": str(error), "error_type": "overloaded"}, 429)

    return routes


def _answer(chat: ChatModel, body: TextRequest) -> Any:
    wanted = body.parameters
    sampling, ids = wanted.sampling(), chat.text_ids(body.inputs, wanted.truncate)
    generation = chat.generate(ids, sampling)
    if body.stream:
        pieces = iter(generation)
        first = next(pieces, "")  # a full line answers 429 here, before the stream has begun
        return Stream(_events(first, pieces, generation), generation)
    text = "".join(generation)
    answer: dict[str, Any] = {"generated_text": (body.inputs if wanted.return_full_text else "") + text}
    if wanted.details:
        answer["details"] = _details(generation) | {"prefill": [], "tokens": _tokens(chat, generation)}
    return [answer]


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
    for piece in pieces:
        yield event(index, newest)
        text, newest, index = text + newest, piece, index + 1
    yield event(index, newest, generated_text=text + newest, details=_details(generation))
