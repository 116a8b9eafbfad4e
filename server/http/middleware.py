"""Middleware of plain ASGI: a limit on bodies, and API keys. Used by `server.http.app`.

Not Starlette's BaseHTTPMiddleware, which hides the client's disconnect from handlers.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.wording import as_size
from server.http.errors import ErrorInfo


class BodyLimit:
    """Middleware: 413 for a request body of more than `max_body_bytes`."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._error = ErrorInfo(413, f"The body is larger than {as_size(max_body_bytes)}: send several requests.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_body_bytes:
            return await self._error.response(scope, receive, send)
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            received_bytes += len(message.get("body", b""))
            if received_bytes > self._max_body_bytes:
                raise HTTPException(413, self._error.message)
            return message

        await self._app(scope, counted, send)


class ApiKeys:
    """Middleware: 401 for paths under /v1 unless the request brings one of the keys as a bearer token."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1") and not self._is_allowed(scope):
            error = ErrorInfo(401, "A valid API key is needed: send it as `Authorization: Bearer KEY`.")
            headers = {"WWW-Authenticate": "Bearer"}
            return await error._replace(headers=headers).response(scope, receive, send)
        await self._app(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # Constant time: every key is compared, each by its digest.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return scheme.lower() == "bearer" and any(matches)
