"""Sends rows to the engine, as many as it can have, and hands over their results as they come.

Used by whoever has rows: batches (`server.batches.feeder`) and runs without a server (`server.offline`).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from seesaw.engine.values.errors import EngineDeadError, QueueFullError
from seesaw.server.batches.answering import Answering
from seesaw.server.batches.job import Finished
from seesaw.server.batches.lengths import Lengths
from seesaw.server.batches.lookahead import Lookahead, Planned
from seesaw.server.batches.rows import Row, RowError, RowResponse, RowResult, make_row_id
from seesaw.server.batches.window import Place, Window
from seesaw.server.ids import unique_id
from seesaw.server.link.errors import EngineLostError, RestartingError, ShuttingDownError

MAX_READING = 4  # calls, each of which has rows ahead
RETRY_ROW_S = 0.05, 1.0  # after a row found the engine's queue full or no engine, at first and at most


class Sender:
    """One for all rows of an engine."""

    def __init__(self, answering: Answering, window: Window) -> None:
        self._answering = answering
        self._window = window
        self._turns = asyncio.Semaphore(MAX_READING)

    async def send(self, number: int, rows: Iterator[Row], take: Callable[[Finished], None]) -> None:
        """Have all of these rows answered; of several calls' rows those of the lower number go first. `take` is called
        with each result, which the window counts until it is told to `keep` it. Waits for ever once the engine is dead
        for good: whoever watches it cancels this."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._begin(number, rows, take, tasks)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the others are of tasks that it cut off

    async def _begin(
        self, number: int, rows: Iterator[Row], take: Callable[[Finished], None], tasks: asyncio.TaskGroup
    ) -> None:
        lengths = Lengths()
        ahead = Lookahead(rows, lengths)
        async with self._turns:
            while some := await asyncio.to_thread(ahead.take):
                for planned in some:
                    place = await self._window.enter(number, planned.row.bytes)
                    task = tasks.create_task(self._answer(planned, lengths, place))
                    # Not the task's own last act: one that is cancelled early never begins.
                    task.add_done_callback(partial(self._ended, planned.row, place, take))

    async def _answer(self, planned: Planned, lengths: Lengths, place: Place) -> RowResult:
        request = planned.row.request
        row_id, request_id, raw = make_row_id(), unique_id(), bytes(request.body)
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
        result = RowResult(row_id, request.custom_id, response)
        if not result.is_error:
            lengths.learn(planned.asked, answered.body)
        return result

    def _ended(self, row: Row, place: Place, take: Callable[[Finished], None], task: asyncio.Task[RowResult]) -> None:
        if task.cancelled() or task.exception() is not None:
            place.leave()
            self._window.keep(1, row.bytes)
            return
        result = task.result()
        finished = Finished(row.number, result.is_error, result.line, row.bytes)
        place.leave(len(finished.line))
        take(finished)
