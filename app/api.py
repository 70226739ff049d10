"""The HTTP side: health and plain generation here, what OpenAI's and TGI's clients speak beside it, and refusals."""

from __future__ import annotations

import base64
import secrets
from typing import Any

from chat_model import ChatModel
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from guard import refusal_body
from openai_routes import make_openai_routes
from pydantic import BaseModel
from sampling import BusyError, RequestError, Sampling
from starlette.exceptions import HTTPException as AnyHTTPException
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
    schema = {"openapi_url": None} if credentials else {}
    guards = [_require(credentials)] if credentials else []
    # FastAPI's pages of documentation would load their scripts from another site.
    api = FastAPI(title="LLM Foundry", docs_url=None, redoc_url=None, dependencies=guards, **schema)
    _refuse_with_words(api)

    @api.head("/health", include_in_schema=False)
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
        return JSONResponse(refusal_body(message, kind), status)

    @api.exception_handler(RequestError)
    async def refuse(request: Request, error: RequestError) -> JSONResponse:
        return answer(400, str(error))

    @api.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return answer(429, str(error), "overloaded")

    @api.exception_handler(AnyHTTPException)  # FastAPI raises Starlette's own, too
    async def not_here(request: Request, error: AnyHTTPException) -> JSONResponse:
        response = answer(error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(400, _what_is_wrong(error))


def _what_is_wrong(error: RequestValidationError) -> str:
    """Of several faults the one that lies deepest: where a field may have two types, that is the one meant."""
    fault = max(error.errors(), key=lambda each: len(each["loc"]))
    if fault["type"] == "json_invalid":
        return f"body: JSON decode error at character {fault['loc'][-1]}"
    # pydantic puts the names of types between those of fields: messages.0.content.list[TextPart].0.type
    names = [str(part) for part in fault["loc"] if str(part).isalnum() or "_" in str(part)]
    where = ".".join(name for name in names if name not in ("body", "str"))
    if not where:
        return "body: expected a JSON object, sent with Content-Type: application/json"
    return f"{where}: {fault['msg']}"
