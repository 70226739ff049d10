"""Connections: how many there may be, how long a request may take to arrive, and events that no proxy keeps."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from guard import Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_SECONDS = 20.0  # from a connection, or a request's first byte, to the last of its body
# What the kernel may hand over at once: asyncio accepts them all before one can be refused, and each that finds no
# file left writes a traceback.
BACKLOG = 64
FILES_FOR_OTHERS = 64
MOST_CONNECTIONS = 1024


def most_connections() -> int:
    """Connections that leave files enough for those that are about to be refused, and for everything else."""
    if sys.platform == "win32":  # knows no such limit
        return MOST_CONNECTIONS
    import resource

    num_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if num_files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(8, min(MOST_CONNECTIONS, num_files - 2 * BACKLOG - FILES_FOR_OTHERS))


class BoundedHTTP(H11Protocol):
    """uvicorn's protocol, which waits for a request without end and takes every connection.

    ``Config(http=…)`` is public; ``connections``, ``conn`` and ``loop`` are the protocol's own, and used here only:
    there is no setting for either bound.
    """

    most_connections = MOST_CONNECTIONS
    request_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            transport.abort()
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The time runs while a request has begun and is not whole; what is no request ends by itself."""
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            if self.request_timer is None:
                self.request_timer = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)
        else:
            self._unwatch()

    def _unwatch(self) -> None:
        if self.request_timer is not None:
            self.request_timer.cancel()
            self.request_timer = None


class Unbuffered:
    """ASGI middleware: nginx shall pass events on as they come, the page's too."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start" and _are_events(message["headers"]):
                message = {**message, "headers": [*message["headers"], (b"x-accel-buffering", b"no")]}
            await send(message)

        await self.app(scope, receive, sent)


def _are_events(headers: Any) -> bool:
    return any(name.lower() == b"content-type" and b"text/event-stream" in value for name, value in headers)
