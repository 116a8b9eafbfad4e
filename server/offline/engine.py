"""An engine process with the server's handlers in front of it and no HTTP: rows of batches in, their results out.

`OfflineEngine` lives in an event loop (`server.offline.run`); `RowEngine` is the same for threads, such as an actor's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import EngineDeadError, SeesawError
from seesaw.engine.wire.messages import Stats
from seesaw.server.backend import StartEngine, check_settings, make_backend, start_backend
from seesaw.server.batches.answering import Answering
from seesaw.server.batches.job import Finished
from seesaw.server.batches.jobs import make_window
from seesaw.server.batches.rows import Row, RowError, RowResult, check_line, make_row_id, read_line
from seesaw.server.batches.sender import Sender
from seesaw.server.config import ServerConfig
from seesaw.server.link.bridge import Bridge
from seesaw.server.openai.handlers import make_handlers

logger = logging.getLogger(__name__)

Take = Callable[[Finished], None]


class OfflineEngine:
    """One that is ready."""

    def __init__(
        self, bridge: Bridge, dying: asyncio.Task[SeesawError], sender: Sender, keep: Callable[[int, int], None]
    ) -> None:
        """`dying` ends with what the engine died of for good."""
        self._bridge = bridge
        self._dying = dying
        self._sender = sender
        self.keep = keep

    async def answer(self, number: int, rows: Iterator[Row], take: Take) -> None:
        """As `Sender.send`; `keep` is the window's. Raises EngineDeadError if the engine dies meanwhile."""
        sending = asyncio.create_task(self._sender.send(number, rows, take))
        try:
            await asyncio.wait((sending, self._dying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        if not sending.cancelled():
            return sending.result()
        raise EngineDeadError(str(self._dying.result()))

    def stats(self) -> Stats:
        """The engine's counters as it last told them."""
        return self._bridge.stats()


@asynccontextmanager
async def offline_engine(
    engine: EngineConfig,
    server: ServerConfig,
    report: Callable[[str], None] = logger.info,
    start_engine: StartEngine | None = None,
) -> AsyncIterator[OfflineEngine]:
    """Start an engine, and end it with the block. `report` is told how the start goes on.

    Raises ConfigError, or EngineDeadError if the engine dies before it is ready.
    """
    bridge, keeper = make_backend(engine, server, report, start_engine)
    try:
        info, tokenizer, grammars, defaults = await start_backend(engine, server, keeper)
        with contextlib.closing(grammars):
            handlers = make_handlers(bridge, info, tokenizer, server, grammars, defaults)
            with contextlib.closing(handlers.lanes):
                window = make_window(info, bridge, handlers.serving)
                sender = Sender(Answering(handlers.serving.respond, handlers.of_rows), window)
                dying = asyncio.create_task(keeper.keep())
                try:
                    yield OfflineEngine(bridge, dying, sender, window.keep)
                finally:
                    dying.cancel()
                    await asyncio.gather(dying, return_exceptions=True)
    finally:
        await keeper.close()


class RowEngine:
    """Holds an engine, and answers rows from any thread; those of several calls run together.

    Use it as a context manager, or `close` it.
    """

    def __init__(
        self, engine: EngineConfig, server: ServerConfig | None = None, start_engine: StartEngine | None = None
    ) -> None:
        """Returns when the engine is ready. Raises ConfigError or EngineDeadError."""
        self._settings = engine, server or ServerConfig()
        check_settings(*self._settings)
        self._start_engine = start_engine
        self._ready: Future[OfflineEngine] = Future()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="row-engine", daemon=True)
        self._thread.start()
        self._ready.result()

    def answer(self, rows: Sequence[bytes | str | Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The result of each row, in their order, as a line of an output file has it: `custom_id` is the row's.

        A row is a line of an input file, or what is in it. What is no request has an `error`, as has one for a URL that
        is not answered. Raises EngineDeadError if the engine has died, or dies: none of these rows counts as done then.
        """
        lines = [_line(row) for row in rows]
        found: dict[int, bytes] = {}
        fit: list[Row] = []
        for number, line in enumerate(lines):
            error, custom_id = check_line(number, line, None, self._settings[1].max_body_bytes)
            if error is None:
                fit.append(Row(number, read_line(line), len(line)))
            else:
                refused = RowResult(make_row_id(), custom_id or "", error=RowError(error.code, error.message))
                found[number] = refused.line
        found |= {finished.row: finished.line for finished in self.answer_rows(fit)}
        return [msgspec.json.decode(found[number]) for number in range(len(lines))]

    def answer_rows(self, rows: Sequence[Row]) -> list[Finished]:
        """The results of rows of an input that was checked, as they came. Raises as `answer`."""
        if not self._thread.is_alive():
            raise EngineDeadError("this engine is closed: make a new one")
        try:
            return asyncio.run_coroutine_threadsafe(self._answer(rows), self._loop).result()
        except CancelledError:
            raise EngineDeadError("this engine was closed") from None

    def stats(self) -> Stats:
        """The engine's counters as it last told them."""
        return self._ready.result().stats()

    def close(self) -> None:
        """End the engine; calls that other threads are in raise EngineDeadError. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()

    def __enter__(self) -> RowEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _live(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with offline_engine(*self._settings, start_engine=self._start_engine) as engine:
                self._ready.set_result(engine)
                await self._stop.wait()
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _answer(self, rows: Sequence[Row]) -> list[Finished]:
        engine = self._ready.result()
        results: list[Finished] = []

        def take(finished: Finished) -> None:
            results.append(finished)
            engine.keep(1, finished.request_bytes + len(finished.line))

        await engine.answer(next(self._numbers), iter(rows), take)
        return results


def _line(row: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(row, bytes):
        return row
    return row.encode() if isinstance(row, str) else msgspec.json.encode(row)
