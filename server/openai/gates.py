"""How many requests are being prepared at once: read, rendered and tokenized. Used by `server.openai.serving`.

A body becomes objects of up to sixty times its size before it is token ids. Those who wait do so as the bytes that
came, which are bounded. Large bodies have a gate of their own, so that small ones never wait for them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from seesaw.server.openai.protocol.body import SMALL_BODY_BYTES

SMALL_AT_ONCE = 64
LARGE_AT_ONCE = 8


class Gates:
    """One for bodies of each size. Owned by the event loop."""

    def __init__(self) -> None:
        self._small, self._large = asyncio.Semaphore(SMALL_AT_ONCE), asyncio.Semaphore(LARGE_AT_ONCE)

    @contextlib.asynccontextmanager
    async def enter(self, body_bytes: int) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place, which is held until the end or until what this gives is called."""
        gate = self._small if body_bytes <= SMALL_BODY_BYTES else self._large
        await gate.acquire()
        has_place = True

        def leave() -> None:
            nonlocal has_place
            if has_place:
                has_place = False
                gate.release()

        try:
            yield leave
        finally:
            leave()
