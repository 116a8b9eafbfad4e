"""Streams of events by themselves: comments between events, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from seesaw.server.http.streams import EventStream

pytestmark = pytest.mark.anyio

COMMENT = b": keep-alive\n\n"


class Client:
    """The other end: what it was sent, and when it leaves."""

    def __init__(self, comments: int) -> None:
        """`has_waited` after so many comments."""
        self.pieces: list[bytes] = []
        self.has_waited = asyncio.Event()
        self.leaves = asyncio.Event()
        self._comments = comments

    async def receive(self) -> Any:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.pieces.append(message.get("body", b""))
        if self.pieces.count(COMMENT) >= self._comments:
            self.has_waited.set()


async def test_comments_are_sent_while_nothing_comes() -> None:
    client = Client(comments=3)
    closed: list[bool] = []

    async def events() -> AsyncIterator[bytes]:
        yield b"first"
        await client.has_waited.wait()
        yield b"second"

    await EventStream(events(), lambda: closed.append(True), keep_alive_s=0.001)({}, client.receive, client.send)
    news = [piece for piece in client.pieces if piece not in (b"", COMMENT)]
    assert (news, closed) == ([b"first", b"second"], [True])
    assert client.pieces.index(b"second") - client.pieces.index(b"first") > 3


@pytest.mark.parametrize("keep_alive_s", [0.0, 0.001])
async def test_a_client_that_leaves_ends_its_events(keep_alive_s: float) -> None:
    client = Client(comments=1 if keep_alive_s else 0)
    ends: list[str] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"first"
            await client.has_waited.wait()
            client.leaves.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    stream = EventStream(events(), lambda: ends.append("closed"), keep_alive_s=keep_alive_s)
    await stream({}, client.receive, client.send)
    assert ends == ["cancelled", "closed"]


async def test_what_goes_wrong_in_a_stream_is_raised() -> None:
    client = Client(comments=1)

    async def events() -> AsyncIterator[bytes]:
        yield b"first"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await EventStream(events(), lambda: None, keep_alive_s=60.0)({}, client.receive, client.send)
