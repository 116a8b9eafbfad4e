"""The server's end of the line to the engine process: requests down, outputs up, death noticed.

The bridge binds both ZeroMQ sockets and the engine connects, so either may come first. Everything here
runs in the event loop's thread. Memory stays bounded: streams hold token ids only, outputs that a slow
client has not taken are merged, and the number of sequences without a first token is limited.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from seesaw.engine.awake import waits
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import ConfigError, EngineDeadError, QueueFullError, RequestError, SeesawError
from seesaw.engine.wire.messages import (
    Abort,
    Add,
    Dead,
    EngineInfo,
    FromEngine,
    Output,
    Outputs,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    ResetPrefixCache,
    Starting,
    Stats,
    Stop,
    ToEngine,
)
from seesaw.server.link.outbox import Outbox
from seesaw.server.link.room import Room, size_tokens
from seesaw.server.link.stream import LiveRequest, Stream, fresh
from seesaw.server.metrics import Metrics

logger = logging.getLogger(__name__)

# After the engine process ended, its last words may still be on their way through ZeroMQ: so long nothing must come.
LAST_WORDS_S = 1.0
LINGER_MS = 2000  # an upper bound only: Stop goes out at once where the engine lives


class Bridge:
    """Talks to one engine process. Use: `start`, then `ready`, then `submit` and `ping`; `close` at the end."""

    def __init__(
        self,
        send_address: str,
        receive_address: str,
        *,
        max_queued_requests: int,
        max_queued_tokens: int,
        sentinel: int | None = None,
        on_progress: Callable[[str], None] = logger.info,
    ) -> None:
        """`sentinel`: file descriptor that turns readable when the engine process ends."""
        self._addresses = send_address, receive_address
        self.room = Room(max_queued_requests, max_queued_tokens)
        self._sentinel = sentinel
        self._on_progress = on_progress
        self._context = zmq.asyncio.Context()
        self._reader: asyncio.Task[None] | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._live: dict[str, LiveRequest] = {}
        self._outbox = Outbox(self._put)
        self._num_heard = 0  # messages of the engine
        self._stats = Stats()
        self._nonces = itertools.count()
        self._pings: dict[int, asyncio.Future[Stats]] = {}
        self._failure: SeesawError | None = None
        self.metrics = Metrics(self.stats)

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
        self._reader = asyncio.create_task(self._read(), name="bridge")
        if self._sentinel is not None:
            loop.add_reader(self._sentinel, self._on_exit)

    async def ready(self) -> EngineInfo:
        """Wait until the engine serves. Raises what it died of: ConfigError or EngineDeadError."""
        await self._unless_dead(self._info)
        # The engine connects two sockets; the one that it receives on may come a moment later.
        await self._unless_dead(asyncio.ensure_future(self._sender.poll(None, zmq.POLLOUT)))  # type: ignore[call-arg]
        return self._info.result()

    async def _unless_dead(self, future: asyncio.Future[Any]) -> None:
        await asyncio.wait((future, self._death), return_when=asyncio.FIRST_COMPLETED)
        if self._death.done():
            raise self._death.result()

    async def hangs(self, timeout_s: float) -> bool:
        """Wait until the engine has left pings unanswered for `timeout_s` while requests were live (True), or ended
        in any other way (False)."""
        missed = 0
        while self._failure is None:
            try:
                if self._live:
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
        if not self._death.done():
            self._death.set_result(error)
            self.fail(EngineDeadError(str(error)))

    def check_room(self, num_sequences: int, num_tokens: int = 0) -> None:
        """Raise QueueFullError if so many more sequences, or tokens of prompts, may not wait, or what ended the
        engine."""
        if self._failure is not None:
            raise fresh(self._failure)
        self.room.check(num_sequences, num_tokens)

    def submit(
        self,
        id: str,
        requests: Sequence[tuple[list[int], SamplingParams]],
        arrival_s: float | None = None,
        priority: int = 0,
        cache_salt: str = "",
    ) -> Stream:
        """Hand requests of the same `n` (prompt token ids and sampling) to the engine, all of them or none.

        Raises QueueFullError if too many sequences, or too long prompts, wait for their first token, EngineDeadError if
        the engine died, or what `fail` was given.
        """
        sizes = [size_tokens(prompt, sampling) for prompt, sampling in requests]
        self.check_room(sum(sampling.n for _, sampling in requests), sum(sizes))
        seen: SamplingParams | None = None
        for _, sampling in requests:
            if sampling is not seen:
                self._encoder.encode(sampling)  # which may raise: nothing has changed then
                seen = sampling
        stream = Stream(self._abort, self.metrics, time.monotonic() if arrival_s is None else arrival_s)
        for index, ((prompt, sampling), size) in enumerate(zip(requests, sizes, strict=True)):
            add = Add(f"{id}-{index}", prompt, sampling, priority, cache_salt)
            request = self._live[add.id] = stream.add(add.id, sampling.n, size)
            self.room.take(request)
            self._outbox.add(add.id, partial(self._encoder.encode, add), sampling.n, size)
        return stream

    async def ping(self, timeout_s: float) -> Stats:
        """One turn of the engine's loop. Raises TimeoutError if it takes too long, or what ended the engine."""
        if self._failure is not None:
            raise fresh(self._failure)
        nonce = next(self._nonces)
        self._pings[nonce] = asyncio.get_running_loop().create_future()
        try:
            self._send(Ping(nonce))
            return await asyncio.wait_for(self._pings[nonce], timeout_s)
        finally:
            self._pings.pop(nonce).cancel()

    async def reset_prefix_cache(self, timeout_s: float) -> None:
        """Return once no prompt finds what was computed before. Raises as `ping`; it may be done all the same."""
        self._send(ResetPrefixCache())
        await self.ping(timeout_s)  # messages keep their order

    def stats(self) -> Stats:
        """The engine's latest snapshot."""
        return self._stats

    @property
    def num_live(self) -> int:
        """Requests that have not ended; of a call with several prompts, each counts."""
        return len(self._live)

    def fail(self, error: SeesawError) -> None:
        """End every stream with this error and accept nothing more."""
        if self._failure is not None:
            return
        self._failure = error
        for stream in {request.stream for request in self._live.values()}:
            stream.fail(error)
        self._live.clear()
        self._outbox.clear()
        self.room.clear()
        for waiter in self._pings.values():
            if not waiter.done():
                waiter.set_exception(error)

    async def close(self) -> None:
        """Tell the engine to stop, and let go of the sockets. Idempotent."""
        if self._reader is None or self._context.closed:
            return
        self.fail(EngineDeadError("The engine is being stopped."))
        if self._sentinel is not None:
            asyncio.get_running_loop().remove_reader(self._sentinel)
        if not self._death.done():
            self._send(Stop())
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        self._context.destroy()

    def _send(self, message: ToEngine, then: Callable[[], None] | None = None) -> None:
        self._outbox.control(self._encoder.encode(message), then)

    def _put(self, payload: bytes) -> bool:
        # Again: nobody is connected, so the engine is ending; whoever waits for an answer hears of it by its death.
        try:
            self._send_now.send(payload, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _abort(self, request: LiveRequest, index: int | None) -> None:
        if request.id not in self._live:
            return
        if index is not None:
            self._send(Abort(request.id, index))
            return
        del self._live[request.id]
        if self._outbox.withdraw(request.id):
            self.room.give_back(request)
        else:
            self._send(Abort(request.id), lambda: self.room.give_back(request))

    def _forget(self, request: LiveRequest) -> None:
        del self._live[request.id]
        self.room.give_back(request)

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
        match message:
            case Outputs():
                if message.stats is not None:
                    self._stats = message.stats
                now_s = time.monotonic()
                for prompt in message.cached:
                    if prompt.id in self._live:
                        self._live[prompt.id].num_cached_tokens = prompt.tokens
                for output in message:
                    self._deliver(output, now_s)
                if message.handled:
                    self._outbox.handled(message.handled)
            case Refused(id=id, message=reason, param=param, queue_full=queue_full):
                request = self._live.get(id)
                if request is not None:
                    self._forget(request)
                    request.stream.fail(QueueFullError(reason) if queue_full else RequestError(reason, param))
            case Pong(nonce=nonce, stats=stats):
                self._stats = stats
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
                    self.metrics.expect_layouts(info)
            case Dead(message=reason, is_config=is_config):
                self.die(ConfigError(reason) if is_config else EngineDeadError(reason))

    def _deliver(self, output: Output, now_s: float) -> None:
        request = self._live.get(output.id)
        if request is None:
            return  # aborted while this was on its way
        self.room.begin(request, output.index)
        if request.stream.put(request, output, now_s):
            self._forget(request)

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
