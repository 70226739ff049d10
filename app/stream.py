"""One answer on its way to a client: no longer made once nobody waits for it, streamed or not."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from generation import Generation
from starlette.concurrency import run_in_threadpool


class Stream(StreamingResponse):
    """Events of a generation.

    A client can be gone before the first of them is taken, and then nothing closes the iterator: so the response says
    that it is done, however it ends.
    """

    def __init__(self, events: Iterator[str], generation: Generation) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.generation = generation

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.generation.leave()


async def whole_text(request: Request, generation: Generation) -> str:
    """The answer's text; cut where the client has gone meanwhile."""
    text: str = await _while_there(request, generation, lambda: "".join(generation))
    return text


async def first_piece(request: Request, generation: Generation) -> tuple[str, Iterator[str]]:
    """The first piece and the others to come: a full line is told before the stream has begun."""
    pieces = iter(generation)
    return await _while_there(request, generation, lambda: next(pieces, "")), pieces


async def _while_there(request: Request, generation: Generation, work: Callable[[], Any]) -> Any:
    """What ``work`` gives, done in a thread; the generation ends early when the client goes."""
    watcher = asyncio.create_task(_leave_when_gone(request, generation))
    try:
        return await run_in_threadpool(work)
    finally:
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher


async def _leave_when_gone(request: Request, generation: Generation) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    generation.leave()
