"""OpenAI's chat completions, completions and models, as far as this server honours them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from chat_model import ChatModel, Generation
from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from sampling import MAX_NEW_TOKENS, RequestError, Sampling
from stream import Stream
from torch import Tensor

# Fields of OpenAI's requests that change the answer and that this server does not honour, with the values that
# ask for nothing.  Refused rather than ignored; fields outside this list and the classes below change nothing.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "tools": (None, []), "functions": (None, []), "best_of": (None, 1), "echo": (None, False),
    "suffix": (None, ""), "response_format": (None, {"type": "text"}), "logprobs": (None, False),
    "logit_bias": (None, {}), "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
    "modalities": (None, ["text"]), "audio": (None,), "web_search_options": (None,), "top_logprobs": (None, 0),
    "tool_choice": (None, "none", "auto"), "function_call": (None, "none", "auto"),
    # vLLM's additions
    "min_p": (None, 0), "min_tokens": (None, 0), "ignore_eos": (None, False), "stop_token_ids": (None, []),
    "guided_json": (None,), "guided_regex": (None,), "guided_choice": (None,), "guided_grammar": (None,),
    "structured_outputs": (None,), "prompt_logprobs": (None,), "use_beam_search": (None, False),
    "bad_words": (None, []), "allowed_token_ids": (None, []), "truncate_prompt_tokens": (None,),
    "include_stop_str_in_output": (None, False), "skip_special_tokens": (None, True),
    "continue_final_message": (None, False), "add_generation_prompt": (None, True), "documents": (None, []),
    "chat_template": (None,), "chat_template_kwargs": (None, {}),
}  # fmt: skip


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and text, as chat templates take them; ``developer`` is OpenAI's newer word for ``system``."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class Request(BaseModel):
    """What both kinds of request share; ``top_k`` and ``repetition_penalty`` are vLLM's additions."""

    model_config = ConfigDict(extra="allow")
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None

    def length(self) -> int | None:
        return self.max_tokens

    def sampling(self) -> Sampling:
        """Raises RequestError for a field that this server does not honour."""
        for name, neutral in NOT_HONOURED.items():
            value = (self.model_extra or {}).get(name)
            # 0 equals False, but asks for the log-probability of each drawn token
            asks_for_drawn = name == "logprobs" and value == 0 and value is not False
            if value not in neutral or asks_for_drawn:
                raise RequestError(f"{name}: not supported by this server")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        given = {
            "max_new_tokens": self.length(), "temperature": self.temperature, "top_p": self.top_p,
            "top_k": self.top_k, "repetition_penalty": self.repetition_penalty, "seed": self.seed,
            "stop": tuple(stop for stop in stops if stop),
        }  # fmt: skip
        return Sampling(**{name: value for name, value in given.items() if value is not None})


class ChatRequest(Request):
    """A conversation, to be answered."""

    messages: list[Message] = Field(min_length=1, max_length=200)
    max_completion_tokens: int | None = Field(None, ge=1)

    def length(self) -> int:
        """What was asked for; where nothing was, an answer ends by itself."""
        return self.max_completion_tokens or self.max_tokens or MAX_NEW_TOKENS


class CompletionRequest(Request):
    """A text, to be gone on with; also as token ids, and as the only one of a list: lm-eval sends it so."""

    prompt: str | list[int] | list[str] | list[list[int]]

    def ids(self, chat: ChatModel) -> Tensor:
        """Prompt ids (1, length); raises RequestError for several prompts, and for one that cannot be."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            if len(prompt) > 1:
                raise RequestError("prompt: one a request, not a list of several")
            prompt = prompt[0]
        return chat.text_ids(prompt) if isinstance(prompt, str) else chat.given_ids(prompt)


def make_openai_routes(chat: ChatModel) -> APIRouter:
    """The routes under ``/v1`` around one loaded model.  A request's ``model`` is not compared: there is one."""
    routes = APIRouter(prefix="/v1")
    model = {"id": chat.name, "object": "model", "created": int(time.time()), "owned_by": "llm-foundry"}

    @routes.head("/models", include_in_schema=False)
    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @routes.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != chat.name:
            raise HTTPException(404, f"model: there is one here, {chat.name}")
        return model

    # Plain functions: FastAPI runs them in threads, so the event loop stays free while the model works.
    @routes.post("/chat/completions", response_model=None)
    def chat_completions(body: ChatRequest) -> dict[str, Any] | Stream:
        sampling = body.sampling()
        ids = chat.chat_ids([message.plain() for message in body.messages])
        return _answer(chat.generate(ids, sampling), body, chat.name, CHAT)

    @routes.post("/completions", response_model=None)
    def completions(body: CompletionRequest) -> dict[str, Any] | Stream:
        sampling = body.sampling()
        return _answer(chat.generate(body.ids(chat), sampling), body, chat.name, COMPLETION)

    @routes.api_route(
        "/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
    )
    async def nothing(path: str) -> None:
        if path in ("chat/completions", "completions"):
            raise HTTPException(405, f"/v1/{path}: takes POST", {"Allow": "POST"})
        raise HTTPException(404, f"/v1/{path}: not here; /v1/ has models, chat/completions and completions")

    return routes


@dataclass(frozen=True)
class Shape:
    """What OpenAI calls a kind of answer, and where in a choice its text stands.

    Args:
        prefix: of an answer's id.
        whole, chunk: kinds of object, not streamed and streamed.
        choice: a choice with the whole text.
        delta: a choice with a piece of it, and whether that is the first.
    """

    prefix: str
    whole: str
    chunk: str
    choice: Callable[[str], dict[str, Any]]
    delta: Callable[[str, bool], dict[str, Any]]


def _chat_delta(text: str, is_first: bool) -> dict[str, Any]:
    return {
        "delta": {"role": "assistant", "content": text} if is_first else {"content": text} if text else {}
    }


CHAT = Shape(
    "chatcmpl", "chat.completion", "chat.completion.chunk",
    lambda text: {"message": {"role": "assistant", "content": text}}, _chat_delta,
)  # fmt: skip
COMPLETION = Shape(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text, _: {"text": text}
)


def _answer(generation: Generation, body: Request, name: str, shape: Shape) -> dict[str, Any] | Stream:
    if not body.stream:
        text = "".join(generation)
        choice = {"index": 0, **shape.choice(text), "finish_reason": generation.finish_reason}
        return {**_head(name, shape.prefix, shape.whole), "choices": [choice], "usage": _usage(generation)}
    pieces = iter(generation)
    first = next(pieces, "")  # a full line answers 429 here, before the stream has begun
    with_usage = bool((body.stream_options or {}).get("include_usage"))
    events = _events(_head(name, shape.prefix, shape.chunk), shape, first, pieces, generation, with_usage)
    return Stream(events, generation)


def _head(name: str, prefix: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex[:24]}",
        "object": kind,
        "created": int(time.time()),
        "model": name,
    }


def _usage(generation: Generation) -> dict[str, int]:
    prompt_tokens = generation.ids.shape[1]
    return {
        "prompt_tokens": prompt_tokens, "completion_tokens": generation.num_tokens,
        "total_tokens": prompt_tokens + generation.num_tokens,
    }  # fmt: skip


def _events(
    head: dict[str, Any],
    shape: Shape,
    first: str,
    pieces: Iterator[str],
    generation: Generation,
    with_usage: bool,
) -> Iterator[str]:
    """Server-sent events of one answer, OpenAI's chunks."""

    def event(delta: dict[str, Any], finish: str | None = None) -> str:
        choice = {"index": 0, **delta, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield event(shape.delta(first, True))
    for piece in pieces:
        yield event(shape.delta(piece, False))
    yield event(shape.delta("", False), generation.finish_reason)
    if with_usage:
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(generation)})}\n\n"
    yield "data: [DONE]\n\n"
