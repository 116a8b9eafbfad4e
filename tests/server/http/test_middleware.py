"""Limits on bodies: of one, and of all together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from seesaw.server.http.middleware import SMALL_BODY_BYTES, BodyLimit

pytestmark = pytest.mark.anyio


class App:
    """Reads a body and then stays until it is let go."""

    def __init__(self) -> None:
        self.read_bytes = 0
        self.let_go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.read_bytes = len(await Request(scope, receive).body())
        await self.let_go.wait()


async def call(limit: BodyLimit, pieces: Iterable[int], path: str = "/v1/completions") -> None:
    coming = iter(pieces)

    async def receive() -> Message:
        size = next(coming, None)
        return {"type": "http.request", "body": bytes(size or 0), "more_body": size is not None}

    async def send(_: Message) -> None:
        pass

    await limit({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)


async def test_bodies_of_requests_in_progress_are_bounded_together() -> None:
    app = App()
    limit = BodyLimit(app, max_body_bytes=1 << 20, max_total_body_bytes=300_000, max_file_bytes=1 << 20)
    first = asyncio.create_task(call(limit, [100_000, 100_000]))
    while not app.read_bytes:
        await asyncio.sleep(0)
    with pytest.raises(HTTPException) as refused:
        await call(limit, [100_000, 1])
    assert (refused.value.status_code, refused.value.headers) == (503, {"Retry-After": "1"})
    app.let_go.set()
    await first
    await call(limit, [100_000] * 3)


async def test_small_bodies_pass_whatever_others_take() -> None:
    app = App()
    limit = BodyLimit(app, max_body_bytes=1 << 20, max_total_body_bytes=1000, max_file_bytes=1 << 20)
    app.let_go.set()
    await call(limit, [SMALL_BODY_BYTES])
    with pytest.raises(HTTPException):
        await call(limit, [SMALL_BODY_BYTES, 1])


async def test_files_are_bounded_by_themselves() -> None:
    app = App()
    limit = BodyLimit(app, max_body_bytes=1000, max_total_body_bytes=1000, max_file_bytes=1 << 20)
    uploading = asyncio.create_task(call(limit, [500_000, 500_000], "/v1/files"))
    while not app.read_bytes:
        await asyncio.sleep(0)
    app.let_go.set()
    await call(limit, [900])
    await uploading
    for path, size in (("/v1/files", 2 << 20), ("/v1/files/x", 2000)):
        with pytest.raises(HTTPException) as refused:
            await call(limit, [size], path)
        assert refused.value.status_code == 413
