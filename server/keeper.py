"""Keeps an engine behind the bridge: starts its process, guards it, starts another when it dies, and ends it.

Made by `server.backend` for every door; a door has one, from the first engine's start to its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from multiprocessing.process import BaseProcess
from typing import Any, Protocol

import zmq

from seesaw.engine.values.errors import EngineDeadError, SeesawError
from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.channel import Channel

ENGINE_STOP_S = 10.0  # for the engine to end its workers before it is killed
PAUSE_S = 1.0, 30.0


class EngineHandle(Protocol):
    """An engine process that was started (`engine.process.EngineProcess`)."""

    @property
    def process(self) -> BaseProcess: ...

    @property
    def send_address(self) -> str: ...

    @property
    def receive_address(self) -> str: ...

    def close(self, timeout_s: float) -> int | None:
        """Give the process so long to end by itself, then end it, and wait for all that was below it; remove its run
        folder. Idempotent."""

    def kill(self) -> None:
        """As `close`, but at once and without asking."""


class _Engine:
    """One of them: its process and its channel."""

    def __init__(self, handle: EngineHandle, channel: Channel) -> None:
        self.handle = handle
        self.channel = channel
        self.grace_s = 0.0  # an engine that still starts does not hear that it should stop
        self._ending: asyncio.Task[None] | None = None

    def kill(self, error: EngineDeadError) -> None:
        """It would not listen to less; its workers end with it."""
        self.handle.process.kill()
        self.channel.die(error)

    async def end(self) -> None:
        """Of several callers each waits until it has ended, and none that is cancelled stops it."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        await self.channel.close()
        await asyncio.to_thread(self.handle.close, self.grace_s)  # in a thread, so that a second signal is heard


class EngineKeeper:
    """Use: `start`, then `keep`; `close` at the end. Owned by the event loop."""

    def __init__(
        self,
        bridge: Bridge,
        start_engine: Callable[[], EngineHandle],
        *,
        restarts: int,
        start_timeout_s: float,
        engine_timeout_s: float,
        report: Callable[[str], None],
        pause_s: tuple[float, float] = PAUSE_S,
    ) -> None:
        """`restarts`: how many engines may be started in place of those that died. An engine is killed that is not
        heard of for `start_timeout_s` while it starts, or `engine_timeout_s` while it has work. `report` is told how
        starts go on. `pause_s`: before the next start after one that failed, at first and at most."""
        self._bridge = bridge
        self._start_engine = start_engine
        self._restarts, self._most_restarts = 0, restarts
        self._start_timeout_s = start_timeout_s
        self._engine_timeout_s = engine_timeout_s
        self._report = report
        self._pause_s = pause_s
        self._engine: _Engine | None = None
        self._starting: asyncio.Task[EngineInfo] | None = None
        self._info: EngineInfo | None = None  # of the first
        self._took_s = 0.0  # to start the latest

    async def start(self) -> EngineInfo:
        """The engine serves. Raises what it died of: ConfigError or EngineDeadError."""
        self._starting = asyncio.create_task(self._start())
        return await self._starting

    async def _start(self) -> EngineInfo:
        began_s = time.monotonic()
        try:
            handle = self._start_engine()
            channel = Channel(
                handle.send_address,
                handle.receive_address,
                self._bridge.take_news,
                sentinel=handle.process.sentinel,
                on_progress=self._report,
            )
            engine = self._engine = _Engine(handle, channel)
            channel.start()
        except (OSError, zmq.ZMQError) as error:  # no memory, no descriptors
            raise EngineDeadError(f"the engine's process could not be started: {error.strerror or error}") from None
        async with _beside(self._end_if_silent(engine)):
            info = await channel.ready()
        engine.grace_s = ENGINE_STOP_S
        self._check_same(info)
        self._took_s = time.monotonic() - began_s
        self._bridge.attach(channel)
        return info

    async def keep(self) -> SeesawError:
        """Wait until an engine died and none takes its place; says why."""
        while True:
            assert self._engine is not None
            async with _beside(self._end_if_hung(self._engine)):
                error: SeesawError | None = await self._engine.channel.death()
            pause_s, longest_s = 0.0, self._pause_s[1]
            while error is not None:
                if self._restarts >= self._most_restarts:
                    self._bridge.fail(EngineDeadError(str(error)))
                    return error
                error = await self._restart(error, pause_s)
                pause_s = min(2 * pause_s, longest_s) or self._pause_s[0]

    async def _restart(self, error: SeesawError, pause_s: float) -> SeesawError | None:
        """Start another in place of the one that died of `error`, after a pause. What it died of, if it did."""
        self._restarts += 1
        self._bridge.detach(error, pause_s + self._took_s)
        self._report(f"error: {error}")
        assert self._engine is not None
        await self._engine.end()  # the next one needs the memory that this one took
        await asyncio.sleep(pause_s)
        self._report(f"starting the engine again ({self._restarts} of {self._most_restarts} times)")
        self._bridge.metrics.engine_restarts.inc()
        try:
            await self.start()
        except SeesawError as failure:
            return failure
        self._report("ready again")
        return None

    def keep_no_longer(self) -> None:
        """What dies from now on, is dead."""
        self._most_restarts = 0

    def kill(self) -> None:
        """At once, before this process ends."""
        if self._engine is not None:
            self._engine.handle.kill()

    async def close(self) -> None:
        """End the engine, also one that starts. `keep` may not run any more."""
        self._bridge.fail(EngineDeadError("The engine is being stopped."))
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._engine is not None:
            await self._engine.end()

    def _check_same(self, info: EngineInfo) -> None:
        """What the server goes by stays true, though somebody may have changed the checkpoint."""
        first = self._info = self._info or info
        if any(
            getattr(info, name) != getattr(first, name) for name in ("max_model_len", "vocab_size", "eos_token_ids")
        ):
            raise EngineDeadError("the engine came back with another model or context: start the server again")

    async def _end_if_silent(self, engine: _Engine) -> None:
        """While it starts: it gives its workers their time by itself, and is heard of meanwhile unless it cannot
        speak."""
        await engine.channel.silence(self._start_timeout_s)
        engine.kill(
            EngineDeadError(
                f"the engine that starts was not heard of for {self._start_timeout_s:g} s and was killed: "
                "look for what stopped it, or raise --start-timeout-s"
            )
        )

    async def _end_if_hung(self, engine: _Engine) -> None:
        if await engine.channel.hangs(self._engine_timeout_s, lambda: self._bridge.num_live > 0):
            engine.kill(
                EngineDeadError(
                    f"the engine has hung for {self._engine_timeout_s:g} s and was killed: "
                    "look for what stopped it, or raise --engine-timeout-s if it was only slow"
                )
            )


@contextlib.asynccontextmanager
async def _beside(guard: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """It runs until the end of the block."""
    task = asyncio.create_task(guard)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
