"""What is turned away before any route sees it: foreign hosts and origins, large bodies, uploads."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from refusals import refusal_body

Scope = MutableMapping[str, Any]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MAX_BODY_BYTES = 2**20
UPLOAD_ROUTES = ("/gradio_api/upload", "/upload")


class Guard:
    """ASGI middleware in front of the API and the page.

    Args:
        app: what is guarded.
        only_loopback_hosts: refuse a ``Host`` other than this machine's.  A page of another site that has its
            own name point here (DNS rebinding) cannot hide that name.
        check_origin: refuse a browser's request from a page of another site.
    """

    def __init__(self, app: Any, only_loopback_hosts: bool, check_origin: bool) -> None:
        self.app, self.only_loopback_hosts, self.check_origin = app, only_loopback_hosts, check_origin

    async def __call__(self, scope: Scope, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        refusal = self.refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refuse(send, *refusal)

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and sentence of a request that goes no further; None for one that may pass."""
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        host = headers.get("host", "")
        if self.only_loopback_hosts and _host_name(f"//{host}") not in LOOPBACK:
            return 403, "host: this server answers on this machine only"
        origin = headers.get("origin")
        if self.check_origin and origin is not None and urlsplit(origin).netloc != host:
            return 403, "origin: pages of other sites may not use this server"
        if scope["path"].rstrip("/").endswith(UPLOAD_ROUTES):
            return 403, "files: this server takes text only"
        if "transfer-encoding" in headers:
            return 411, "body: send its length"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            return 413, f"body: at most {MAX_BODY_BYTES} bytes"
        return None


def _host_name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:  # a host no URL can have
        return None


async def refuse(
    send: Callable[[Any], Awaitable[None]], status: int, message: str, more: Mapping[str, str] | None = None
) -> None:
    """Answer with a refusal, the body of the request unread."""
    content = json.dumps(refusal_body(message)).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **(more or {})}
    if status in (411, 413):
        headers["Connection"] = "close"  # the body stays unread
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": content})
