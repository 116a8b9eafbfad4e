"""Work beside the event loop that does not hold up the end of the process. Used by `server.service`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """As `asyncio.to_thread`, whose threads the process waits for before it ends; this one it does not."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            errors.append(error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=run, name="beside", daemon=True).start()
    await ended.wait()
    if errors:
        raise errors[0]
    return results[0]
