"""Server-sent events of one answer, which is no longer made once nobody reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from chat_model import Generation
from fastapi.responses import StreamingResponse


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
