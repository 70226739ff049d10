"""Who may use the API: credentials, compared in constant time, and how often an address may guess them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from fastapi import Depends, HTTPException, Request
from guard import Scope, refuse

API_PATHS = ("/health", "/generate")
LET_IN = "llm_foundry.let_in"  # key of an ASGI scope
FREE_GUESSES = 5
GUESS_SECONDS = 2.0  # an address that has used those up waits so long before it is heard
MOST_WAITING = 4  # requests of such an address
FORGOTTEN_SECONDS = 60.0
MOST_ADDRESSES = 1024
CHALLENGE = {"WWW-Authenticate": 'Basic realm="LLM Foundry", charset="UTF-8"'}


@dataclass
class _Guesses:
    """Of one address: how many were wrong, when the newest, and how many requests wait."""

    num_wrong: int = 0
    newest_seconds: float = 0.0
    num_waiting: int = 0


class Credentials:
    """ASGI middleware that hears credentials before a body is read.

    The API's are checked here.  The page's login is Gradio's: here it is only slowed down.  Who guesses from one
    address slows down nobody at another; behind a proxy on this machine uvicorn takes the address from
    ``X-Forwarded-For``.

    Args:
        app: what is guarded; its routes still have to ask for ``needed``.
        user, password: what is right.
    """

    def __init__(self, app: Any, user: str, password: str) -> None:
        self.app, self.user, self.password = app, user, password
        self.addresses: OrderedDict[str, _Guesses] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif _is_login(scope):
            await self._slowly(scope, send, lambda: self._log_in(scope, receive, send))
        elif _is_api(scope):
            await self._let_in(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _slowly(self, scope: Scope, send: Any, go_on: Callable[[], Awaitable[None]]) -> None:
        """Go on at once, or after a while for an address whose guesses were wrong; not with many of them waiting."""
        guesses = self.addresses.get(_address(scope))
        if guesses and time.monotonic() - guesses.newest_seconds > FORGOTTEN_SECONDS:
            guesses.num_wrong = 0
        if guesses and guesses.num_wrong >= FREE_GUESSES:
            if guesses.num_waiting >= MOST_WAITING:
                message = "credentials: too many wrong ones from this address; wait a little"
                await refuse(send, 429, message, {"Retry-After": f"{GUESS_SECONDS:.0f}"})
                return
            guesses.num_waiting += 1
            try:
                await asyncio.sleep(GUESS_SECONDS)
            finally:
                guesses.num_waiting -= 1
        await go_on()

    async def _let_in(self, scope: Scope, receive: Any, send: Any) -> None:
        header = dict(scope["headers"]).get(b"authorization")
        if header is None:
            await refuse(send, 401, "credentials needed", CHALLENGE)
        else:
            await self._slowly(scope, send, lambda: self._check(header, scope, receive, send))

    async def _check(self, header: bytes, scope: Scope, receive: Any, send: Any) -> None:
        if not self.is_right(header):
            self._was_wrong(scope)
            await refuse(send, 401, "credentials: wrong", CHALLENGE)
            return
        scope[LET_IN] = True
        await self.app(scope, receive, send)

    async def _log_in(self, scope: Scope, receive: Any, send: Any) -> None:
        """Gradio answers 400 to a wrong password; until it does, a login counts as one."""
        guesses = self._was_wrong(scope)

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] != 400:
                guesses.num_wrong -= 1
            await send(message)

        await self.app(scope, receive, watched)

    def _was_wrong(self, scope: Scope) -> _Guesses:
        address = _address(scope)
        guesses = self.addresses.setdefault(address, _Guesses())
        guesses.num_wrong += 1
        guesses.newest_seconds = time.monotonic()
        self.addresses.move_to_end(address)
        if len(self.addresses) > MOST_ADDRESSES:
            self.addresses.popitem(last=False)
        return guesses

    def is_right(self, header: bytes) -> bool:
        """Whether a header is ``Basic`` with both, or ``Bearer`` with the password.

        Letters outside ASCII come in UTF-8 (curl, browsers) or Latin-1 (requests, urllib).
        """
        scheme, _, value = header.partition(b" ")
        given, right = value.strip(), self.password
        if scheme.lower() == b"basic":
            right = f"{self.user}:{self.password}"
            try:
                given = base64.b64decode(given, validate=True)
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        in_latin_1 = right.encode("latin-1", "replace") if _is_latin_1(right) else right.encode()
        # both are compared whatever the first says
        return bool(secrets.compare_digest(given, right.encode()) | secrets.compare_digest(given, in_latin_1))


def needed() -> Any:
    """A dependency of routes that the middleware has to let in: without it they stay closed."""

    def check(request: Request) -> None:
        if not request.scope.get(LET_IN):
            raise HTTPException(401, "credentials needed", CHALLENGE)

    return Depends(check)


def _is_api(scope: Scope) -> bool:
    path = scope["path"]
    return path in API_PATHS or path.startswith("/v1/") or (path == "/" and scope["method"] == "POST")


def _is_login(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login")


def _is_latin_1(text: str) -> bool:
    return all(ord(character) < 256 for character in text)


def _address(scope: Scope) -> str:
    """The client's; of IPv6 the network, which is one customer's."""
    text = (scope.get("client") or ("",))[0]
    try:
        address = ip_address(text)
    except ValueError:
        return text
    return text if address.version == 4 else str(int(address) >> 64)
