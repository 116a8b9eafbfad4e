"""The sockets to one engine process: messages both ways, the engine's health, and its death.

It binds both and the engine connects, so either may come first. What requests are about is the bridge's
(`server.link.bridge`), which outlives it; whoever keeps the engine (`server.keeper`) starts and closes it. Everything
here runs in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from seesaw.engine.awake import waits
from seesaw.engine.values.errors import ConfigError, EngineDeadError, SeesawError
from seesaw.engine.wire.messages import (
    Dead,
    EngineInfo,
    FromEngine,
    Outputs,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    Starting,
    Stats,
    Stop,
    ToEngine,
)
from seesaw.server.link.outbox import Outbox
from seesaw.server.link.stream import fresh

logger = logging.getLogger(__name__)

# After the engine process ended, its last words may still be on their way through ZeroMQ: so long nothing must come.
LAST_WORDS_S = 1.0
LINGER_MS = 2000  # an upper bound only: Stop goes out at once where the engine lives


class Channel:
    """Use: `start`, then `ready`, then `outbox`, `send` and `ping` until `death`; `close` at the end."""

    def __init__(
        self,
        send_address: str,
        receive_address: str,
        on_news: Callable[[Outputs | Refused], None],
        *,
        sentinel: int | None = None,
        on_progress: Callable[[str], None] = logger.info,
    ) -> None:
        """`on_news` is told what comes of requests, and nothing after the death. `sentinel`: file descriptor that turns
        readable when the engine process ends."""
        self._addresses = send_address, receive_address
        self._on_news = on_news
        self._sentinel = sentinel
        self._on_progress = on_progress
        self._context = zmq.asyncio.Context()
        self._reader: asyncio.Task[None] | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self.outbox = Outbox(self._put)
        self.stats = Stats()  # the latest snapshot
        self._num_heard = 0  # messages of the engine
        self._nonces = itertools.count()
        self._pings: dict[int, asyncio.Future[Stats]] = {}

    def start(self) -> None:
        """Bind both sockets and listen. Must be called in the event loop."""
        loop = asyncio.get_running_loop()
        self._info: asyncio.Future[EngineInfo] = loop.create_future()
        self._death: asyncio.Future[SeesawError] = loop.create_future()
        self._sender = self._context.socket(zmq.PUSH)
        self._receiver = self._context.socket(zmq.PULL)
        for socket, address in zip((self._sender, self._receiver), self._addresses, strict=True):
            socket.set_hwm(0)  # what queues up is bounded by the number of live requests
            socket.linger = LINGER_MS
            socket.bind(address)
        # Sends never wait (no high-water mark), so they need no event loop; a shadow is the same socket, plain.
        self._send_now: zmq.Socket[bytes] = zmq.Socket.shadow(self._sender.underlying)
        self._reader = asyncio.create_task(self._read(), name="channel")
        if self._sentinel is not None:
            loop.add_reader(self._sentinel, self._on_exit)

    async def ready(self) -> EngineInfo:
        """Wait until the engine serves. Raises what it died of: ConfigError or EngineDeadError."""
        await self._unless_dead(self._info)
        # The engine connects two sockets; the one that it receives on may come a moment later.
        await self._unless_dead(asyncio.ensure_future(self._sender.poll(None, zmq.POLLOUT)))  # type: ignore[call-arg]
        return self._info.result()

    @property
    def info(self) -> EngineInfo:
        """Of an engine that was ready."""
        return self._info.result()

    async def _unless_dead(self, future: asyncio.Future[Any]) -> None:
        await asyncio.wait((future, self._death), return_when=asyncio.FIRST_COMPLETED)
        if self._death.done():
            raise self._death.result()

    async def hangs(self, timeout_s: float, is_busy: Callable[[], bool]) -> bool:
        """Wait until the engine has left pings unanswered for `timeout_s` while it had work (True), or died in any
        other way (False)."""
        missed = 0
        while not self._death.done():
            try:
                if is_busy():
                    await self.ping(timeout_s / 2)
            except TimeoutError:
                missed += 1
                if missed == 2:  # two halves, since one could pass while this very process stood still
                    return True
            except SeesawError:
                return False
            else:
                missed = 0
                await asyncio.sleep(timeout_s / 4)
        return False

    async def silence(self, timeout_s: float) -> None:
        """Wait until nothing has come from the engine for so long."""
        num_heard = -1
        while num_heard != self._num_heard:
            num_heard = self._num_heard
            for wait_s in waits(timeout_s):
                await asyncio.sleep(wait_s)
                if num_heard != self._num_heard:
                    break

    async def death(self) -> SeesawError:
        """Wait until the engine is dead, and say why."""
        return await asyncio.shield(self._death)

    def die(self, error: SeesawError) -> None:
        """The engine is dead of this error; the first that is named counts."""
        if self._death.done():
            return
        self._death.set_result(error)
        self.fail_pings(EngineDeadError(str(error)))

    async def ping(self, timeout_s: float) -> Stats:
        """One turn of the engine's loop. Raises TimeoutError if it takes too long, or EngineDeadError."""
        if self._death.done():
            raise EngineDeadError(str(self._death.result()))
        nonce = next(self._nonces)
        self._pings[nonce] = asyncio.get_running_loop().create_future()
        try:
            self.send(Ping(nonce))
            return await asyncio.wait_for(self._pings[nonce], timeout_s)
        finally:
            self._pings.pop(nonce).cancel()

    def fail_pings(self, error: SeesawError) -> None:
        """Nobody needs to know any more whether the engine's loop turns."""
        for waiter in self._pings.values():
            if not waiter.done():
                waiter.set_exception(fresh(error))

    def send(self, message: ToEngine, then: Callable[[], None] | None = None) -> None:
        """Before all requests that wait in the outbox. `then` is called when the engine has handled it."""
        self.outbox.control(self._encoder.encode(message), then)

    async def close(self) -> None:
        """Tell the engine to stop, and let go of the sockets. Idempotent."""
        if self._context.closed:
            return
        if self._reader is not None:  # else it could not be started
            if self._sentinel is not None:
                asyncio.get_running_loop().remove_reader(self._sentinel)
            if not self._death.done():
                self.send(Stop())
                self.die(EngineDeadError("The engine is being stopped."))
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        self._context.destroy()

    def _put(self, payload: bytes) -> bool:
        # Again: nobody is connected, so the engine is ending; whoever waits for an answer hears of it by its death.
        try:
            self._send_now.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    async def _read(self) -> None:
        try:
            while True:
                self._handle(self._decoder.decode(await self._receiver.recv()))
                await asyncio.sleep(0)  # receiving what is here does not yield, and would starve the handlers
        except Exception as error:  # a message that cannot be read: nothing after it can be trusted
            logger.exception("cannot read from the engine")
            self.die(EngineDeadError(f"the engine sent what the server cannot read: {error}"))

    def _handle(self, message: FromEngine) -> None:
        self._num_heard += 1
        if self._death.done():
            return  # its requests may be another engine's already
        match message:
            case Outputs():
                if message.stats is not None:
                    self.stats = message.stats
                self._on_news(message)
                if message.handled:
                    self.outbox.handled(message.handled)
            case Refused():
                self._on_news(message)
            case Pong(nonce=nonce, stats=stats):
                self.stats = stats
                waiter = self._pings.get(nonce)
                if waiter is not None and not waiter.done():
                    waiter.set_result(stats)
            case Progress(message=line):
                self._on_progress(line)
            case Starting():
                pass  # it was heard of
            case Ready(info=info):
                if not self._info.done():
                    self._info.set_result(info)
            case Dead(message=reason, is_config=is_config):
                self.die(ConfigError(reason) if is_config else EngineDeadError(reason))

    def _on_exit(self) -> None:
        assert self._sentinel is not None
        asyncio.get_running_loop().remove_reader(self._sentinel)
        self._listen_on(self._num_heard, halves=2)

    def _listen_on(self, num_heard: int, halves: int) -> None:
        """Wait for so many half LAST_WORDS_S without a message: one could pass while this very process stood still."""
        if num_heard != self._num_heard:
            halves = 2
        if halves == 0:
            self.die(EngineDeadError("the engine process ended without a word"))
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(LAST_WORDS_S / 2, self._listen_on, self._num_heard, halves - 1)
