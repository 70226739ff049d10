"""The HTTP side: health, plain generation, and the chat completions that OpenAI-compatible clients speak."""

from __future__ import annotations

import base64
import json
import secrets
import time
import uuid
from collections.abc import Iterator
from typing import Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

try:
    from app.chat_model import BusyError, ChatModel, Outcome, RequestError, Sampling
except ImportError:  # a Space runs the folder's files side by side
    from chat_model import BusyError, ChatModel, Outcome, RequestError, Sampling


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(BaseModel):
    """The part of OpenAI's chat completion request that a small model can honour; the rest is ignored."""

    model_config = ConfigDict(extra="ignore")
    messages: list[Message] = Field(min_length=1, max_length=200)
    model: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False


class GenerateRequest(BaseModel):
    prompt: str
    max_new_tokens: int = 128
    temperature: float = 0.7
    top_p: float = 0.9
    top_k: int | None = None
    repetition_penalty: float = 1.0


def require(credentials: tuple[str, str]) -> Any:
    """A dependency that asks for HTTP basic credentials, or the password as a bearer token."""
    user, password = credentials
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()

    def check(request: Request) -> None:
        scheme, _, value = request.headers.get("authorization", "").partition(" ")
        expected = {"basic": basic, "bearer": password}.get(scheme.lower())
        if expected is None or not secrets.compare_digest(value.encode(), expected.encode()):
            raise HTTPException(401, "credentials needed", {"WWW-Authenticate": "Basic"})

    return Depends(check)


def make_api(chat: ChatModel, credentials: tuple[str, str] | None = None) -> FastAPI:
    """FastAPI application around one loaded model; every route asks for the credentials, where given."""
    guards = [require(credentials)] if credentials else []
    api = FastAPI(title="LLM Foundry", docs_url="/docs", redoc_url=None, dependencies=guards)

    @api.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)

    @api.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "type": "overloaded"}}, 429)

    @api.get("/health")
    def health() -> dict[str, Any]:
        billions = chat.num_parameters / 1e9
        return {"status": "ok", "device": chat.device, "checkpoint": chat.name, "parameters_billions": billions}

    @api.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": chat.name, "object": "model", "owned_by": "llm-foundry"}]}

    @api.post("/generate")
    def generate(body: GenerateRequest) -> dict[str, Any]:
        sampling = Sampling(
            body.max_new_tokens, body.temperature, body.top_p, body.top_k or 0, body.repetition_penalty
        )
        text = "".join(chat.stream(chat.text_ids(body.prompt), sampling))
        tokens = len(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
        return {
            "prompt": body.prompt, "generated_text": text, "full_response": body.prompt + text,
            "tokens_generated": tokens,
        }  # fmt: skip

    @api.post("/v1/chat/completions", response_model=None)
    def chat_completions(body: ChatRequest) -> dict[str, Any] | StreamingResponse:
        defaults = Sampling()
        sampling = Sampling(
            defaults.max_new_tokens if body.max_tokens is None else body.max_tokens,
            defaults.temperature if body.temperature is None else body.temperature,
            defaults.top_p if body.top_p is None else body.top_p,
        ).checked()
        ids = chat.chat_ids([message.model_dump() for message in body.messages])
        outcome = Outcome()
        pieces = chat.stream(ids, sampling, outcome)
        if body.stream:
            first = next(pieces, "")  # a full line answers 429 here, before the stream has begun
            return StreamingResponse(_events(chat.name, first, pieces, outcome), media_type="text/event-stream")
        return _completion(chat, ids.shape[1], "".join(pieces), outcome)

    return api


def _head(name: str, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex[:24]}", "object": kind, "created": int(time.time()), "model": name}


def _completion(chat: ChatModel, prompt_tokens: int, text: str, outcome: Outcome) -> dict[str, Any]:
    tokens = len(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": outcome.finish_reason}
    usage = {
        "prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens,
    }  # fmt: skip
    return {**_head(chat.name, "chat.completion"), "choices": [choice], "usage": usage}


def _events(name: str, first: str, pieces: Iterator[str], outcome: Outcome) -> Iterator[str]:
    head = _head(name, "chat.completion.chunk")

    def event(delta: dict[str, str], finish: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": first})
    for piece in pieces:
        yield event({"content": piece})
    yield event({}, outcome.finish_reason)
    yield "data: [DONE]\n\n"
