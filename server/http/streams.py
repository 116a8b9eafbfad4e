"""Responses that last: server-sent events, and work that ends when its client leaves. Used by the handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`, or None, with `work` cancelled, if the client left before it was done.

    The request's body must have been read. Whatever happens, `work` has ended on return.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """A response of server-sent events. `close` is called when it is over, also if it never began."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None], keep_alive_s: float = 0.0) -> None:
        """`keep_alive_s`: a comment is sent when nothing came for so long, lest proxies cut the line; 0 sends none."""
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = _kept_alive(events, keep_alive_s) if keep_alive_s else events
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._send(send))
        finally:
            self._close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _kept_alive(events: AsyncIterator[bytes], interval_s: float) -> AsyncIterator[bytes]:
    """The events, and a comment whenever none has come for so long."""

    async def following() -> bytes | None:
        return await anext(events, None)

    while True:
        task = asyncio.create_task(following())
        try:
            while not (await asyncio.wait((task,), timeout=interval_s))[0]:
                yield b": keep-alive\n\n"
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        event = task.result()
        if event is None:
            return
        yield event
