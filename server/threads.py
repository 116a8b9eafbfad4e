"""Work beside the event loop that does not hold up the end of the process. Used by `server.service` and handlers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

NUM_SHORT = 2
NUM_LONG = 2


async def in_daemon_thread(work: Callable[[], T]) -> T:
    """As `asyncio.to_thread`, whose threads the process waits for before it ends; this one it does not."""
    future: Future[T] = Future()
    threading.Thread(target=_carry_out, args=(future, work), name="beside", daemon=True).start()
    return await asyncio.wrap_future(future)


class Lanes:
    """Threads for work of two lengths: what is short never waits for what is long. Work that nobody waits for any more
    is not begun; the end of the process waits for none."""

    def __init__(self) -> None:
        self._short, self._long = (self._start(number) for number in (NUM_SHORT, NUM_LONG))

    async def run(self, work: Callable[[], T], *, is_long: bool) -> T:
        """The result of the work, or what it raised."""
        future: Future[T] = Future()
        (self._long if is_long else self._short).put((future, work))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the threads once they have nothing to do."""
        for queue, number in ((self._short, NUM_SHORT), (self._long, NUM_LONG)):
            for _ in range(number):
                queue.put(None)

    def _start(self, number: int) -> SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]:
        queue: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

        def work_off() -> None:
            while (item := queue.get()) is not None:
                _carry_out(*item)
                del item  # which may hold a body of megabytes

        for _ in range(number):
            threading.Thread(target=work_off, name="lane", daemon=True).start()
        return queue


class OneThread:
    """Does one work after another, in the order in which they came, whether somebody still waits for it or not."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of the work, or what it raised."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """Return when all is done that was asked for."""
        self._executor.shutdown()


def _carry_out(future: Future[T], work: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except Exception as error:
        future.set_exception(error)
    except BaseException as error:  # a panic of native code, which no handler knows
        future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
    else:
        future.set_result(result)
