"""What a client reads when it is turned away, in the words of its own API, and what OpenAPI says of it."""

from __future__ import annotations

import re
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sampling import BusyError, ModelError, NoMemoryError, RequestError
from starlette.exceptions import HTTPException as AnyHTTPException

RETRY_SECONDS = 5  # of a full line: one short answer
TEXT_GENERATION_PATH = "/"  # TGI's, whose clients read other refusals than OpenAI's
RETRY_HEADER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
REFUSALS = {
    400: "A field that makes no sense, or that this server does not honour; it stands first in the message.",
    401: "No credentials or wrong ones, where the server asks for them.",
    403: "A foreign host or origin, or a file.",
    404: "There is nothing of this name.",
    411: "A body of no stated length.",
    413: "A body that is too large.",
    422: "A field that makes no sense, or that this server does not honour; it stands first in the message.",
    429: "Too many requests wait, or too many credentials were wrong.",
    500: "The model failed on this request.",
    503: "Not enough memory for this request.",
}


class Fault(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Refusal(BaseModel):
    """OpenAI's."""

    error: Fault


class TextGenerationRefusal(BaseModel):
    """TGI's."""

    error: str
    error_type: str


def refusal_body(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """What OpenAI's clients read in a refusal; the field that is wrong stands first in the message."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def answers_of(
    answer: str | None = None, invalid: Literal[400, 404, 422] | None = 400, streams: bool = True
) -> dict[int | str, Any]:
    """OpenAPI's ``responses`` of a route.

    Args:
        answer: description of what a generation answers; None for a route that generates nothing.
        invalid: status of a request that makes no sense; None where there can be none.
        streams: whether an answer may be server-sent events.
    """
    model = TextGenerationRefusal if invalid == 422 else Refusal
    statuses = [status for status in (invalid,) if status]
    statuses += [401, 403, 429] if answer is None else [401, 403, 411, 413, 429, 500, 503]
    responses: dict[int | str, Any] = {
        status: {
            "model": Refusal if status in (401, 403, 411, 413) else model,
            "description": REFUSALS[status],
        }
        | ({"headers": RETRY_HEADER} if status in (429, 503) else {})
        for status in statuses
    }
    if answer is not None:
        events = {"text/event-stream": {"schema": {"type": "string"}}} if streams else {}
        responses[200] = {"description": answer, "content": events}
    return responses


def declare_what_is_sent(api: FastAPI) -> None:
    """FastAPI declares its own 422 for every route; here it is sent to TGI's clients only, with their body."""
    generated = api.openapi

    def openapi() -> dict[str, Any]:
        schema = generated()
        for operations in schema["paths"].values():
            for operation in operations.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        return schema

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def refuse_with_words(api: FastAPI) -> None:
    """One shape for every refusal of an API; what was sent is not repeated."""

    @api.exception_handler(RequestError)
    async def invalid(request: Request, error: RequestError) -> JSONResponse:
        return _answer(request, 400, str(error))

    @api.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return _answer(request, 400, _what_is_wrong(error))

    @api.exception_handler(BusyError)
    async def busy(request: Request, error: BusyError) -> JSONResponse:
        return _answer(request, 429, str(error))

    @api.exception_handler(ModelError)
    async def failed(request: Request, error: ModelError) -> JSONResponse:
        return _answer(request, 503 if isinstance(error, NoMemoryError) else 500, str(error))

    @api.exception_handler(AnyHTTPException)  # FastAPI raises Starlette's own, too
    async def not_here(request: Request, error: AnyHTTPException) -> JSONResponse:
        response = _answer(request, error.status_code, str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @api.exception_handler(Exception)  # it is raised again for the log once this is sent
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return _answer(request, 500, f"this server failed ({type(error).__name__}); its log says where")


def _answer(request: Request, status: int, message: str) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else None
    if request.url.path == TEXT_GENERATION_PATH:
        kind = {400: "validation", 429: "overloaded", 500: "generation", 503: "overloaded"}.get(status)
        if kind is not None:
            content = {"error": message, "error_type": kind}
            return JSONResponse(content, 422 if status == 400 else status, headers)
    kind = {429: "overloaded", 500: "server_error", 503: "overloaded"}.get(status, "invalid_request_error")
    return JSONResponse(refusal_body(message, kind), status, headers)


def _what_is_wrong(error: RequestValidationError) -> str:
    """Of several faults the one that lies deepest: where a field may have two types, that is the one meant."""
    fault = max(error.errors(), key=lambda each: len(each["loc"]))
    if fault["type"] == "json_invalid":
        return f"body: JSON decode error at character {fault['loc'][-1]}"
    # pydantic puts the names of types between those of fields: messages.0.content.list[Part].0.type
    names = [
        str(part) for part in fault["loc"] if re.fullmatch(r"\w+", str(part)) and part not in ("body", "str")
    ]
    if names[:1] == [
        "parameters"
    ]:  # of TGI: its own names are enough, and Sampling's refusals have no others
        names = names[1:] or names
    where = ".".join(names)
    if not where:
        return "body: expected a JSON object, sent with Content-Type: application/json"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
