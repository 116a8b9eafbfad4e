"""Middleware of plain ASGI: ids of requests, API keys, limits on bodies. Used by `server.http.app`.

Not Starlette's BaseHTTPMiddleware, which hides the client's disconnect from handlers.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import uuid
from collections.abc import Sequence

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seesaw.engine.values.wording import as_size
from seesaw.server.http.errors import RETRY_AFTER_S, ErrorInfo

SMALL_BODY_BYTES = 64 << 10
REQUEST_ID = "X-Request-Id"
FORM_BYTES = 1 << 16  # of an upload, beside the file
# A proxy may take the other one, and the end of the body for a request of its own (RFC 9112, 6.3).
_TWO_LENGTHS = ErrorInfo(
    400, "Content-Length and Transfer-Encoding exclude one another: send one.", headers={"Connection": "close"}
)
GUARDED = re.compile(r"/(v1|status|tokenize|detokenize|tokenizer_info|reset_prefix_cache)(/|$)")


class RootPath:
    """Routes are found below this path, too: a proxy may have stripped it from a request or not."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "root_path": self._root_path}, receive, send)


class RequestIds:
    """Every request has an id, its client's if that is of use; it is in `request.state.id` and in the answer's head."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        id = given if re.fullmatch(r"[\x21-\x7e]{1,128}", given) else uuid.uuid4().hex
        scope.setdefault("state", {})["id"] = id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = id
            await send(message)

        await self._app(scope, receive, send_with_id)


class BodyLimit:
    """413 for a request body of more than `max_body_bytes`, and 503 where those of all requests in progress are more
    than `max_total_body_bytes`. Small bodies always pass: connections are bounded. Uploads of files go to the disk as
    they come: 413 for more than `max_file_bytes`. 400 for a body with two lengths."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_total_body_bytes: int, max_file_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_total_body_bytes = max_total_body_bytes
        self._max_upload_bytes = max_file_bytes + FORM_BYTES
        self._total_body_bytes = 0
        self._error = ErrorInfo(413, f"The body is larger than {as_size(max_body_bytes)}: send several requests.")
        self._upload_error = ErrorInfo(413, f"The file is larger than {as_size(max_file_bytes)}: send several.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        sends_file = is_upload(scope)
        most_bytes = self._max_upload_bytes if sends_file else self._max_body_bytes
        error = self._upload_error if sends_file else self._error
        headers = Headers(scope=scope)
        announced = headers.get("content-length", "")
        if announced and "transfer-encoding" in headers:
            return await _TWO_LENGTHS.response(scope, receive, send)
        if announced.isdecimal() and int(announced) > most_bytes:
            return await error.response(scope, receive, send)
        received_bytes = 0

        async def counted() -> Message:
            nonlocal received_bytes
            message = await receive()
            new_bytes = len(message.get("body", b""))
            received_bytes += new_bytes
            self._total_body_bytes += 0 if sends_file else new_bytes
            if received_bytes > most_bytes:
                raise HTTPException(413, error.message)
            is_too_much = self._total_body_bytes > self._max_total_body_bytes
            if is_too_much and received_bytes > SMALL_BODY_BYTES and not sends_file:
                raise HTTPException(
                    503,
                    "The bodies of the requests in progress take too much memory; try again later.",
                    headers={"Retry-After": str(RETRY_AFTER_S)},
                )
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._total_body_bytes -= 0 if sends_file else received_bytes


class ApiKeys:
    """401 for what costs work, unless the request brings one of the keys as a bearer token."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_guarded(scope) and not self._is_allowed(scope):
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


def is_upload(scope: Scope) -> bool:
    """Whether a request sends a file, which has bounds of its own on bytes and time. Its `root_path` is known."""
    return (scope["method"], get_route_path(scope)) == ("POST", "/v1/files")


def _is_guarded(scope: Scope) -> bool:
    """By the path as it came, and by what is left without the root path."""
    path: str = scope["path"]
    return any(GUARDED.match(each) for each in (path, path.removeprefix(scope.get("root_path", ""))))
