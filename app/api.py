"""The HTTP side: health, plain generation, and the chat completions that OpenAI-compatible clients speak."""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from chat_model import ChatModel, Generation
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sampling import BusyError, RequestError, Sampling

# Fields of OpenAI's request that change the answer and that this server does not honour, with the values that
# ask for nothing.  Refused rather than ignored; fields outside this list and ChatRequest change nothing.
NOT_HONOURED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "stop": (None, [], ""), "tools": (None, []), "functions": (None, []),
    "response_format": (None, {"type": "text"}), "logprobs": (None, False), "logit_bias": (None, {}),
    "presence_penalty": (None, 0), "frequency_penalty": (None, 0),
}  # fmt: skip


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]

    def plain(self) -> dict[str, str]:
        """Role and text, as chat templates take them."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(BaseModel):
    """The part of OpenAI's chat completion request that this server honours; ``top_k`` and
    ``repetition_penalty`` are vLLM's additions to it."""

    model_config = ConfigDict(extra="allow")
    messages: list[Message] = Field(min_length=1, max_length=200)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: dict[str, bool] | None = None

    def sampling(self) -> Sampling:
        """Raises RequestError for a field that this server does not honour."""
        for name, neutral in NOT_HONOURED.items():
            if (self.model_extra or {}).get(name) not in neutral:
                raise RequestError(f"{name}: not supported by this server")
        length = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        given = {
            "max_new_tokens": length, "temperature": self.temperature, "top_p": self.top_p,
            "top_k": self.top_k, "repetition_penalty": self.repetition_penalty, "seed": self.seed,
        }  # fmt: skip
        return Sampling(**{name: value for name, value in given.items() if value is not None})


class GenerateRequest(BaseModel):
    """Text in, its continuation out."""

    prompt: str
    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int | None = None
    repetition_penalty: float = 1.0

    def sampling(self) -> Sampling:
        return Sampling(
            self.max_new_tokens, self.temperature, self.top_p, self.top_k or 0, self.repetition_penalty
        )


def make_api(chat: ChatModel, credentials: tuple[str, str] | None = None) -> FastAPI:
    """FastAPI application around one loaded model; every route asks for the credentials, where given."""
    documentation = {"docs_url": None, "openapi_url": None} if credentials else {"docs_url": "/docs"}
    guards = [_require(credentials)] if credentials else []
    api = FastAPI(title="LLM Foundry", redoc_url=None, dependencies=guards, **documentation)
    _refuse_with_words(api)

    @api.get("/health")
    async def health() -> dict[str, Any]:
        """Answers while a generation runs: it waits for no thread."""
        billions = chat.num_parameters / 1e9
        return {
            "status": "ok",
            "device": chat.device,
            "checkpoint": chat.name,
            "parameters_billions": billions,
        }

    @api.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": chat.name, "object": "model", "owned_by": "llm-foundry"}]}

    # Plain functions: FastAPI runs them in threads, so the event loop stays free while the model works.
    @api.post("/generate")
    def generate(body: GenerateRequest) -> dict[str, Any]:
        generation = chat.generate(chat.text_ids(body.prompt), body.sampling())
        text = "".join(generation)
        return {
            "prompt": body.prompt, "generated_text": text, "full_response": body.prompt + text,
            "tokens_generated": generation.num_tokens,
        }  # fmt: skip

    @api.post("/v1/chat/completions", response_model=None)
    def chat_completions(body: ChatRequest) -> dict[str, Any] | StreamingResponse:
        sampling = body.sampling()
        generation = chat.generate(chat.chat_ids([message.plain() for message in body.messages]), sampling)
        if not body.stream:
            return _completion(chat.name, "".join(generation), generation)
        pieces = iter(generation)
        first = next(pieces, "")  # a full line answers 429 here, before the stream has begun
        with_usage = bool((body.stream_options or {}).get("include_usage"))
        events = _events(chat.name, first, pieces, generation, with_usage)
        return StreamingResponse(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
        )

    return api


def _require(credentials: tuple[str, str]) -> Any:
    """A dependency that asks for HTTP basic credentials, or the password as a bearer token."""
    user, password = credentials
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()

    def check(request: Request) -> None:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        expected = {"basic": basic, "bearer": password}.get(scheme.lower())
        if expected is None or not secrets.compare_digest(value.encode(), expected.encode()):
            raise HTTPException(401, "credentials needed", {"WWW-Authenticate": "Basic"})

    return Depends(check)


def _refuse_with_words(api: FastAPI) -> None:
    """One shape for every refusal, OpenAI's; what was sent is not repeated."""

    def answer(status: int, message: str, kind: str = "invalid_request_error") -> JSONResponse:
        return JSONResponse({"error": {"message": message, "type": kind}}, status)

    @api.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        return answer(400, str(error))

    @api.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return answer(429, str(error), "overloaded")

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return answer(422, f"{where}: {first['msg']}")


def _head(name: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex[:24]}",
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


def _completion(name: str, text: str, generation: Generation) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": generation.finish_reason}
    return {**_head(name, "chat.completion"), "choices": [choice], "usage": _usage(generation)}


def _events(
    name: str, first: str, pieces: Iterator[str], generation: Generation, with_usage: bool
) -> Iterator[str]:
    """Server-sent events of one answer, OpenAI's chunks."""
    head = _head(name, "chat.completion.chunk")

    def event(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": first})
    for piece in pieces:
        yield event({"content": piece})
    yield event({}, generation.finish_reason)
    if with_usage:
        yield f"data: {json.dumps({**head, 'choices': [], 'usage': _usage(generation)})}\n\n"
    yield "data: [DONE]\n\n"
