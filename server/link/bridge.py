"""The requests of clients, and the engine that has them: what the application holds of it.

Engines come and go, each with a channel of its own (`server.link.channel`); whoever keeps them (`server.keeper`)
attaches and detaches them here. A request that an engine took along before any output of it came goes to the next one.
Everything here runs in the event loop's thread. Memory stays bounded: streams hold token ids only, outputs that a slow
client has not taken are merged, and the number of sequences without a first token is limited, also while no engine is
there.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from functools import partial

import msgspec

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import QueueFullError, RequestError, SeesawError
from seesaw.engine.wire.messages import Abort, Add, Output, Outputs, Refused, ResetPrefixCache, Stats
from seesaw.server.link.channel import Channel
from seesaw.server.link.errors import EngineLostError, RestartingError
from seesaw.server.link.room import Room, size_tokens
from seesaw.server.link.stream import LiveRequest, Stream, fresh
from seesaw.server.metrics import Metrics

# Engines that a request may be lost with: it may be what they die of, and others are to be served.
MOST_LOST = 2


class Bridge:
    """Use: `attach` an engine, then `submit` and `ping`; `detach` it when it died and another one is to come, or `fail`
    if none is."""

    def __init__(self, *, max_queued_requests: int, max_queued_tokens: int) -> None:
        self.room = Room(max_queued_requests, max_queued_tokens)
        self._encoder = msgspec.msgpack.Encoder()
        self._live: dict[str, LiveRequest] = {}
        self._channel: Channel | None = None
        self._back_s = 0.0  # when the next engine is expected
        self._failure: SeesawError | None = None
        self._changed = asyncio.Event()  # an engine is here, or none will be
        self.metrics = Metrics(self.stats)

    def attach(self, channel: Channel) -> None:
        """An engine that serves takes over, and what waits for one is sent to it. News of it come to `take_news`."""
        self._channel = channel
        self._changed.set()
        self.metrics.expect_layouts(channel.info)
        for request in self._live.values():
            self._hand_over(channel, request)

    def detach(self, error: SeesawError, back_in_s: float) -> None:
        """The engine, if one was attached, died of this error, and another one is expected in so long. Requests of
        which nothing has come wait for it; calls of which something has come end with EngineLostError."""
        if self._failure is not None:
            return
        self._back_s = time.monotonic() + back_in_s
        if self._channel is None:
            return
        outbox, self._channel = self._channel.outbox, None
        self._changed.clear()
        for request in self._live.values():
            request.num_lost += not outbox.withdraw(request.id)
        outbox.clear()
        lost = {r.stream: r.num_lost for r in self._live.values() if r.add is None or r.num_lost == MOST_LOST}
        for stream, num_lost in lost.items():
            stream.fail(EngineLostError(str(error), num_lost))
        self._live = {id: request for id, request in self._live.items() if request.stream not in lost}
        self.room.clear()  # also of what was aborted: nobody will say that it has let go of it
        for request in self._live.values():
            request.num_cached_tokens = 0
            self.room.take(request)

    def fail(self, error: SeesawError) -> None:
        """End every stream with this error and accept nothing more."""
        if self._failure is not None:
            return
        self._failure = error
        self._changed.set()
        for stream in {request.stream for request in self._live.values()}:
            stream.fail(error)
        self._live.clear()
        self.room.clear()
        if self._channel is not None:
            self._channel.outbox.clear()
            self._channel.fail_pings(error)

    @property
    def has_engine(self) -> bool:
        """Whether one is attached, as far as is known."""
        return self._channel is not None

    async def engine_back(self) -> None:
        """Wait until an engine is attached. Raises what `fail` was given."""
        await self._changed.wait()
        self._attached()

    def check_room(self, num_sequences: int, num_tokens: int = 0) -> None:
        """Raise QueueFullError if so many more sequences, or tokens of prompts, may not wait, RestartingError if no
        engine is there, or what `fail` was given."""
        self._attached()
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

        Raises as `check_room`: too many sequences, or too long prompts, wait for their first token, or no engine is
        there.
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
            request = stream.add(Add(f"{id}-{index}", prompt, sampling, priority, cache_salt), size)
            self._live[request.id] = request
            self.room.take(request)
            self._hand_over(self._attached(), request)
        return stream

    async def ping(self, timeout_s: float) -> Stats:
        """One turn of the engine's loop. Raises TimeoutError if it takes too long, or that no engine is there."""
        return await self._attached().ping(timeout_s)

    async def reset_prefix_cache(self, timeout_s: float) -> None:
        """Return once no prompt finds what was computed before. Raises as `ping`; it may be done all the same."""
        channel = self._attached()
        channel.send(ResetPrefixCache())
        await channel.ping(timeout_s)  # messages keep their order

    def stats(self) -> Stats:
        """The engine's latest snapshot."""
        return Stats() if self._channel is None else self._channel.stats

    @property
    def num_live(self) -> int:
        """Requests that have not ended; of a call with several prompts, each counts."""
        return len(self._live)

    def take_news(self, message: Outputs | Refused) -> None:
        """What the engine that is attached says of requests."""
        match message:
            case Outputs():
                now_s = time.monotonic()
                for prompt in message.cached:
                    if prompt.id in self._live:
                        self._live[prompt.id].num_cached_tokens = prompt.tokens
                for output in message:
                    self._deliver(output, now_s)
            case Refused(id=id, message=reason, param=param, queue_full=queue_full):
                request = self._live.get(id)
                if request is not None:
                    self._forget(request)
                    request.stream.fail(QueueFullError(reason) if queue_full else RequestError(reason, param))

    def _attached(self) -> Channel:
        if self._failure is not None:
            raise fresh(self._failure)
        if self._channel is None:
            raise RestartingError(max(1, math.ceil(self._back_s - time.monotonic())))
        return self._channel

    def _hand_over(self, channel: Channel, request: LiveRequest) -> None:
        add = request.add
        assert add is not None  # nothing has come of it
        channel.outbox.add(add.id, partial(self._encoder.encode, add), add.sampling.n, request.size_tokens)

    def _abort(self, request: LiveRequest, index: int | None) -> None:
        if request.id not in self._live:
            return
        if index is None:
            del self._live[request.id]
        if self._channel is None or (index is None and self._channel.outbox.withdraw(request.id)):
            self.room.give_back(request)
        elif index is None:
            self._channel.send(Abort(request.id), lambda: self.room.give_back(request))
        else:
            self._channel.send(Abort(request.id, index))

    def _forget(self, request: LiveRequest) -> None:
        del self._live[request.id]
        self.room.give_back(request)

    def _deliver(self, output: Output, now_s: float) -> None:
        request = self._live.get(output.id)
        if request is None:
            return  # aborted while this was on its way
        request.add = None
        self.room.begin(request, output.index)
        if request.stream.put(request, output, now_s):
            self._forget(request)
