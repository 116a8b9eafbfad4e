"""Sends rows to the engine, as many as it can have, and hands over their results as they come.

Used by whoever has rows: batches (`server.batches.feeder`) and runs without a server (`server.offline`).
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

import msgspec

from seesaw.engine.values.errors import EngineDeadError, QueueFullError
from seesaw.server.batches.answering import Answering
from seesaw.server.batches.job import Finished
from seesaw.server.batches.rows import Request, Row, RowError, RowResponse, RowResult, make_row_id
from seesaw.server.batches.window import Place, Window
from seesaw.server.link.errors import EngineLostError, RestartingError, ShuttingDownError

READ_ROWS, READ_BYTES = 64, 1 << 20  # at once: no more rows, and no further one beyond so many bytes
RETRY_ROW_S = 0.05, 1.0  # after a row found the engine's queue full or no engine, at first and at most


class Sender:
    """One for all rows of an engine."""

    def __init__(self, answering: Answering, window: Window) -> None:
        self._answering = answering
        self._window = window

    async def send(self, number: int, rows: Iterator[Row], take: Callable[[Finished], None]) -> None:
        """Have all of these rows answered; of several calls' rows those of the lower number go first. `take` is called
        with each result, which the window counts until it is told to `keep` it. Waits for ever once the engine is dead
        for good:        whoever watches it cancels this."""
        try:
            async with asyncio.TaskGroup() as tasks:
                async for row in _read(rows):
                    place = await self._window.enter(number, row.bytes)
                    task = tasks.create_task(self._answer(row.request, place))
                    # Not the task's own last act: one that is cancelled early never begins.
                    task.add_done_callback(partial(self._ended, row, place, take))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the others are of tasks that it cut off

    async def _answer(self, request: Request, place: Place) -> RowResult:
        row_id, request_id, raw = make_row_id(), uuid.uuid4().hex, bytes(request.body)
        if request.url not in self._answering.urls:
            error = RowError("invalid_url", f"The url must be one of {', '.join(self._answering.urls)}.")
            return RowResult(row_id, request.custom_id, error=error)
        pause_s, longest_s = RETRY_ROW_S
        for attempt in itertools.count():
            try:
                answered = await self._answering.answer(request.url, request_id, raw, place.arrive)
                break
            except (QueueFullError, RestartingError, EngineLostError) as error:
                if attempt == 0 and isinstance(error, QueueFullError):
                    self._window.shrink()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, longest_s)
            except (EngineDeadError, ShuttingDownError):
                await asyncio.Future()
        response = RowResponse(answered.status, request_id, msgspec.Raw(answered.body))
        return RowResult(row_id, request.custom_id, response)

    def _ended(self, row: Row, place: Place, take: Callable[[Finished], None], task: asyncio.Task[RowResult]) -> None:
        if task.cancelled() or task.exception() is not None:
            place.leave()
            self._window.keep(1, row.bytes)
            return
        result = task.result()
        finished = Finished(row.number, result.is_error, result.line, row.bytes)
        place.leave(len(finished.line))
        take(finished)


async def _read(rows: Iterator[Row]) -> AsyncIterator[Row]:
    while some := await asyncio.to_thread(_take, rows):
        for row in some:
            yield row


def _take(rows: Iterator[Row]) -> list[Row]:
    """The next ones, in a thread."""
    taken: list[Row] = []
    size_bytes = 0
    for row in rows:
        taken.append(row)
        size_bytes += row.bytes
        if len(taken) == READ_ROWS or size_bytes >= READ_BYTES:
            break
    return taken
