"""OpenAI's chat completions, completions and models, as far as this server honours them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from chat_model import ChatModel
from fastapi import APIRouter, HTTPException
from fastapi import Request as HTTPRequest
from generation import Generation
from openai_requests import ChatRequest, CompletionRequest, Request
from refusals import answers_of, refusal_body
from sampling import ModelError
from starlette.concurrency import run_in_threadpool
from stream import Stream, first_piece, whole_text


def make_openai_routes(chat: ChatModel) -> APIRouter:
    """The routes under ``/v1`` around one loaded model.  A request's ``model`` is not compared: there is one."""
    routes = APIRouter(prefix="/v1")
    model = {"id": chat.name, "object": "model", "created": int(time.time()), "owned_by": "llm-foundry"}

    @routes.head("/models", include_in_schema=False)
    @routes.get("/models", responses=answers_of(None, None))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @routes.get("/models/{name:path}", responses=answers_of(None, 404))
    async def one_model(name: str) -> dict[str, Any]:
        if name != chat.name:
            raise HTTPException(404, f"model: there is one here, {chat.name}")
        return model

    async def answer(body: ChatRequest | CompletionRequest, request: HTTPRequest, shape: Shape) -> Any:
        # What takes time is done in threads, so the event loop stays free while the model works.
        sampling = body.sampling()
        ids = await run_in_threadpool(body.ids, chat)
        return await _answer(chat.generate(ids, sampling), body, request, chat.name, shape)

    @routes.post("/chat/completions", response_model=None, responses=answers_of(ANSWER))
    async def chat_completions(body: ChatRequest, request: HTTPRequest) -> Any:
        return await answer(body, request, CHAT)

    @routes.post("/completions", response_model=None, responses=answers_of(ANSWER))
    async def completions(body: CompletionRequest, request: HTTPRequest) -> Any:
        return await answer(body, request, COMPLETION)

    @routes.api_route(
        "/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False
    )
    async def nothing(path: str) -> None:
        if path in ("chat/completions", "completions"):
            raise HTTPException(405, f"/v1/{path}: takes POST", {"Allow": "POST"})
        raise HTTPException(404, f"/v1/{path}: not here; /v1/ has models, chat/completions and completions")

    return routes


ANSWER = "The answer, or with `stream` its pieces as server-sent events, `[DONE]` last."


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
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}}, _chat_delta,
)  # fmt: skip
COMPLETION = Shape(
    "cmpl", "text_completion", "text_completion", lambda text: {"text": text}, lambda text, _: {"text": text}
)


async def _answer(
    generation: Generation, body: Request, request: HTTPRequest, name: str, shape: Shape
) -> dict[str, Any] | Stream:
    if not body.stream:
        text = await whole_text(request, generation)
        choice = _choice(shape.choice(text), generation.finish_reason)
        return {**_head(name, shape.prefix, shape.whole), "choices": [choice], "usage": _usage(generation)}
    first, rest = await first_piece(request, generation)
    with_usage = bool(body.stream_options and body.stream_options.include_usage)
    events = _events(_head(name, shape.prefix, shape.chunk), shape, first, rest, generation, with_usage)
    return Stream(events, generation)


def _choice(content: dict[str, Any], finish: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": finish}


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
    rest: Iterator[str],
    generation: Generation,
    with_usage: bool,
) -> Iterator[str]:
    """Server-sent events of one answer, OpenAI's chunks; a failure is the last of them."""
    # where usage is asked for, every chunk has it: null until the end
    usage: dict[str, Any] = {"usage": None} if with_usage else {}

    def event(content: dict[str, Any]) -> str:
        return f"data: {json.dumps(content)}\n\n"

    def piece_of(delta: dict[str, Any], finish: str | None = None) -> str:
        return event({**head, "choices": [_choice(delta, finish)], **usage})

    try:
        yield piece_of(shape.delta(first, True))
        for piece in rest:
            yield piece_of(shape.delta(piece, False))
    except ModelError as error:
        yield event(refusal_body(str(error), "server_error"))
        return
    yield piece_of(shape.delta("", False), generation.finish_reason)
    if with_usage:
        yield event({**head, "choices": [], "usage": _usage(generation)})
    yield "data: [DONE]\n\n"
