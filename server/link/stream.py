"""The engine's outputs for one HTTP call, on their way from the bridge to its handler."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from seesaw.engine.values.errors import SeesawError
from seesaw.engine.wire.messages import Add, Output
from seesaw.server.metrics import Metrics


@dataclass
class _Pace:
    """When a choice had its outputs."""

    first_s: float
    last_s: float
    num_tokens: int


@dataclass(eq=False)
class LiveRequest:
    """A request that an engine has, or is to have: some `choices` of its stream."""

    id: str
    stream: Stream
    add: Add | None  # how to ask for it again, until the first output of any of its continuations
    choices: range
    size_tokens: int  # of its prompt, and of what its sampling names
    num_lost: int = 0  # engines that died with it
    num_cached_tokens: int = 0  # of its prompt, whatever the number of choices
    num_open: int = field(init=False)  # of the choices
    waiting: set[int] = field(init=False)  # indices of the continuations whose first output has not come

    def __post_init__(self) -> None:
        self.num_open = len(self.choices)
        self.waiting = set(range(len(self.choices)))


class Stream:
    """Batches of (choice, Output); choice `i * n + k` is continuation k of the call's request i.

    What arrives while the client is slow is merged into one Output per choice. Ends after every choice's last
    Output, or raises what ended it early. Must be closed, which aborts what has not finished.
    """

    def __init__(self, abort: Callable[[LiveRequest, int | None], None], metrics: Metrics, arrival_s: float) -> None:
        """`abort` tells the engine, unless the request has ended, to forget one of its continuations or all of it.
        `arrival_s` is of the monotonic clock."""
        self.arrival_s = arrival_s
        self._abort = abort
        self._metrics = metrics
        self._requests: list[LiveRequest] = []  # until it is closed
        self._num_cached_tokens = 0  # of the closed ones
        self._open: set[int] = set()  # choices whose last output has not come
        self._pending: dict[int, Output] = {}
        self._paces: dict[int, _Pace] = {}  # of choices that had an output
        self._failure: SeesawError | None = None
        self._wake = asyncio.Event()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[tuple[int, Output]]:
        while not self._pending:
            if not self._open:
                raise StopAsyncIteration
            if self._failure is not None:
                raise fresh(self._failure)
            self._wake.clear()
            await self._wake.wait()
        batch, self._pending = self._pending, {}
        return list(batch.items())

    def drop(self, choice: int) -> None:
        """The caller wants no more of this choice: the engine need not go on with it."""
        self._pending.pop(choice, None)
        request = self._requests[choice // len(self._requests[0].choices)]
        was_last = self._close_choice(request, choice)
        self._abort(request, None if was_last else choice - request.choices.start)

    def time_per_output_token_s(self, choice: int) -> float | None:
        """Mean time of the choice's tokens after the first, if it had any."""
        pace = self._paces.get(choice)
        if pace is None or pace.num_tokens < 2:
            return None
        return (pace.last_s - pace.first_s) / (pace.num_tokens - 1)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of all prompts that the engine found, and need not compute."""
        return self._num_cached_tokens + sum(request.num_cached_tokens for request in self._requests)

    def close(self) -> None:
        """Abort what has not finished. Idempotent."""
        self._open.clear()
        self._pending.clear()
        self._num_cached_tokens = self.num_cached_tokens
        # They know their stream: a circle, which would wait for the collector.
        requests, self._requests = self._requests, []
        for request in requests:
            self._abort(request, None)

    # The bridge's side.

    def add(self, add: Add, size_tokens: int) -> LiveRequest:
        """A request before its first output. All requests of a stream have the same n."""
        n = add.sampling.n
        first = len(self._requests) * n
        request = LiveRequest(add.id, self, add, range(first, first + n), size_tokens)
        self._requests.append(request)
        self._open.update(request.choices)
        return request

    def put(self, request: LiveRequest, output: Output, now_s: float) -> bool:
        """An output of one of the requests came. Returns whether the request has ended with it."""
        choice = request.choices[output.index]
        if choice not in self._open:
            return False  # dropped
        if output.tokens:
            pace = self._paces.get(choice)
            if pace is None:
                self._metrics.time_to_first_token.observe(now_s - self.arrival_s)
                self._paces[choice] = _Pace(now_s, now_s, len(output.tokens))
            else:
                self._metrics.inter_token_latency.observe(now_s - pace.last_s)
                pace.last_s = now_s
                pace.num_tokens += len(output.tokens)
        earlier = self._pending.get(choice)
        if earlier is not None:
            earlier.tokens.extend(output.tokens)
            earlier.logprobs.extend(output.logprobs)
            output = msgspec.structs.replace(
                output, tokens=earlier.tokens, logprobs=earlier.logprobs, prompt_logprobs=earlier.prompt_logprobs
            )
        self._pending[choice] = output
        self._wake.set()
        return output.finish_reason is not None and self._close_choice(request, choice)

    def fail(self, error: SeesawError) -> None:
        """No output will come any more; what came already is still delivered."""
        self._failure = error
        self._wake.set()

    def _close_choice(self, request: LiveRequest, choice: int) -> bool:
        """Whether this was the last open choice of the request."""
        if choice in self._open:
            self._open.discard(choice)
            request.num_open -= 1
        return request.num_open == 0


def fresh(error: SeesawError) -> SeesawError:
    """A copy to raise: one exception raised by thousands of tasks would collect all their tracebacks."""
    return copy.copy(error)
