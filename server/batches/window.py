"""How many rows the engine has at once: enough to be full, and not so many that others must wait behind them.

Rows of earlier batches go first: a later one has what they leave, and fills the engine while their last rows end.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

POLL_S = 0.01  # the engine tells nobody when fewer sequences wait
MAX_BYTES = 64 << 20  # of requests and results in memory


class Place:
    """A row's, from when it enters until it leaves."""

    def __init__(self, window: Window) -> None:
        self._window = window
        self._is_entering = True

    def arrive(self) -> None:
        """The engine's queue has the row. Idempotent."""
        if self._is_entering:
            self._is_entering = False
            self._window._arrived()

    def leave(self, result_bytes: int = 0) -> None:
        """The row has ended, with a result of so many bytes."""
        self.arrive()
        self._window._left(result_bytes)


class Window:
    """Rows `enter`, in order of their batches' numbers; those that have left are kept in memory until `keep`."""

    def __init__(self, max_rows: int, may_wait: Callable[[int], bool]) -> None:
        """`may_wait`: whether another row may, beside what waits in the engine and so many on their way there."""
        self._max_rows = max_rows
        self._limit = float(max_rows)  # that the engine's queue took so far
        self._may_wait = may_wait
        self._entrants: list[tuple[int, int, int, asyncio.Future[Place]]] = []  # batch, order of arrival, bytes
        self._arrivals = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self.num_running = 0
        self._num_entering = 0  # of those that run
        self._num_unkept = 0  # that have ended, and whose results are not yet on the disk
        self._bytes = 0

    async def enter(self, batch: int, size_bytes: int) -> Place:
        """Wait for room for a row."""
        entered: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._entrants, (batch, next(self._arrivals), size_bytes, entered))
        self._admit()
        try:
            return await entered
        except asyncio.CancelledError:
            if entered.done() and not entered.cancelled():
                entered.result().leave()
                self.keep(1, size_bytes)
            raise

    def keep(self, num_rows: int, size_bytes: int) -> None:
        """So many rows that had left are on the disk or given up; `size_bytes` are of requests and results."""
        self._num_unkept -= num_rows
        self._bytes -= size_bytes
        self._admit()

    def shrink(self) -> None:
        """The engine's queue had no room for a row that had entered."""
        self._limit = max(1.0, self._limit - 1)

    def _arrived(self) -> None:
        self._num_entering -= 1
        self._admit()

    def _left(self, result_bytes: int) -> None:
        self.num_running -= 1
        self._num_unkept += 1
        self._bytes += result_bytes
        self._limit = min(self._max_rows, self._limit + 1 / self._limit)
        self._admit()

    def _has_room(self, size_bytes: int) -> bool:
        num_rows = self.num_running + self._num_unkept
        return num_rows == 0 or (
            self.num_running < self._limit
            and num_rows < 2 * self._max_rows
            and self._bytes + size_bytes <= MAX_BYTES
            and self._may_wait(self._num_entering)
        )

    def _admit(self) -> None:
        while self._entrants:
            _, _, size_bytes, entered = self._entrants[0]
            if not entered.done():  # else it was cancelled
                if not self._has_room(size_bytes):
                    break
                self.num_running += 1
                self._num_entering += 1
                self._bytes += size_bytes
                entered.set_result(Place(self))
            heapq.heappop(self._entrants)
        if self._entrants and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(POLL_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._admit()
