"""The HTTP side: health and plain generation here, what OpenAI's and TGI's clients speak beside it, and refusals."""

from __future__ import annotations

import base64
import secrets
from typing import Any

from chat_model import ChatModel
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from openai_routes import make_openai_routes
from pydantic import BaseModel
from sampling import BusyError, RequestError, Sampling
from text_generation import make_text_generation


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

    # A plain function: FastAPI runs it in a thread, so the event loop stays free while the model works.
    @api.post("/generate")
    def generate(body: GenerateRequest) -> dict[str, Any]:
        generation = chat.generate(chat.text_ids(body.prompt), body.sampling())
        text = "".join(generation)
        return {
            "prompt": body.prompt, "generated_text": text, "full_response": body.prompt + text,
            "tokens_generated": generation.num_tokens,
        }  # fmt: skip

    api.include_router(make_openai_routes(chat))
    api.include_router(make_text_generation(chat))
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

    @api.exception_handler(HTTPException)
    async def not_here(request: Request, error: HTTPException) -> JSONResponse:
        response = answer(error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return answer(422, f"{where}: {first['msg']}")
