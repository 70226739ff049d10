"""The HTTP side: health and plain generation here, what OpenAI's and TGI's clients speak beside it, and refusals."""

from __future__ import annotations

from typing import Any

from chat_model import ChatModel
from credentials import Credentials, needed
from fastapi import FastAPI, Request
from openai_routes import make_openai_routes
from pydantic import BaseModel
from refusals import answers_of, declare_what_is_sent, refuse_with_words
from request_types import Count, Number, Whole
from sampling import Sampling
from starlette.concurrency import run_in_threadpool
from stream import whole_text
from text_generation import make_text_generation


class GenerateRequest(BaseModel):
    """Text in, its continuation out."""

    prompt: str
    max_new_tokens: Count = None
    temperature: Number = None
    top_p: Number = None
    top_k: Whole = None
    repetition_penalty: Number = None

    def sampling(self) -> Sampling:
        return Sampling(**self.model_dump(exclude={"prompt"}, exclude_none=True))


def make_api(chat: ChatModel, credentials: tuple[str, str] | None = None) -> FastAPI:
    """FastAPI application around one loaded model; every route asks for the credentials, where given."""
    schema = {"openapi_url": None} if credentials else {}
    guards = [needed()] if credentials else []
    # FastAPI's pages of documentation would load their scripts from another site.
    api = FastAPI(title="LLM Foundry", docs_url=None, redoc_url=None, dependencies=guards, **schema)
    if credentials:
        api.add_middleware(Credentials, user=credentials[0], password=credentials[1])
    refuse_with_words(api)
    declare_what_is_sent(api)

    @api.head("/health", include_in_schema=False)
    @api.get("/health", responses=answers_of(None, None))
    async def health() -> dict[str, Any]:
        """Answers while a generation runs: it waits for no thread."""
        billions = chat.num_parameters / 1e9
        return {
            "status": "ok",
            "device": chat.device,
            "checkpoint": chat.name,
            "parameters_billions": billions,
        }

    @api.post("/generate", responses=answers_of("The continuation.", streams=False))
    async def generate(body: GenerateRequest, request: Request) -> dict[str, Any]:
        ids = await run_in_threadpool(chat.text_ids, body.prompt)
        generation = chat.generate(ids, body.sampling())
        text = await whole_text(request, generation)
        return {
            "prompt": body.prompt, "generated_text": text, "full_response": body.prompt + text,
            "tokens_generated": generation.num_tokens,
        }  # fmt: skip

    api.include_router(make_openai_routes(chat))
    api.include_router(make_text_generation(chat))
    return api
