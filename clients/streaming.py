"""One streamed completion over HTTP, and the clock beside it. Called by `clients.driver`.

The hot path of the load test: everything done for each event is done at this speed, or the client is what it measures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec

from clients.record import Record

TIMEOUT_S = 6 * 3600.0
READ_BYTES = 1 << 20
MAX_ERROR_CHARS = 300


@dataclass(frozen=True)
class Request:
    """A prompt, as text or token ids, and how many tokens may follow."""

    prompt: str | list[int]
    input_tokens: int
    max_tokens: int


class _Choice(msgspec.Struct):
    text: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class _Chunk(msgspec.Struct):
    """What matters of a chunk. Unknown keys are passed over."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class StreamError(Exception):
    """The server's stream is not a whole answer; says why."""


class EventParser:
    """Server-sent events out of bytes that may be cut anywhere: the payload of each `data:` line."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]


@dataclass
class Recorder:
    """Turns the events of one request into its Record."""

    request: Request
    arrival_s: float  # when it was due, on the monotonic clock
    start_s: float = 0.0  # set when it goes on the wire
    _ttft_s: float = 0.0
    _last_s: float = 0.0
    _itls_s: list[float] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _usage: _Usage | None = None
    is_over: bool = False

    def event(self, data: bytes, now_s: float) -> None:
        """An event's payload came. Raises StreamError or msgspec.DecodeError."""
        if data == b"[DONE]":
            self.is_over = True
            return
        chunk = _decode(data)
        if chunk.error is not None:
            raise StreamError(f"error in the stream: {_message(chunk.error)}")
        if chunk.choices:
            if self._texts:
                self._itls_s.append(now_s - self._last_s)
            else:
                self._ttft_s = now_s - self.start_s
            self._last_s = now_s
            self._texts.append(chunk.choices[0].text or "")
        if chunk.usage is not None:
            self._usage = chunk.usage

    def finish(self) -> Record:
        """The record of a stream that has ended by itself. Raises StreamError if it is not whole."""
        if not self.is_over:
            raise StreamError("the stream ended without [DONE]")
        if not self._texts:
            raise StreamError("the stream had no choices")
        if self._usage is None:
            raise StreamError("the stream had no usage, so its tokens cannot be counted")
        usage = self._usage
        return self._record(usage.prompt_tokens, usage.completion_tokens, self._last_s, "", usage.cached_tokens)

    def fail(self, reason: str, now_s: float) -> Record:
        return self._record(self.request.input_tokens, 0, now_s, reason)

    def _record(
        self, input_tokens: int, output_tokens: int, end_s: float, error: str, cached_tokens: int | None = None
    ) -> Record:
        start_s = self.start_s or end_s  # it may have failed before it was on the wire
        return Record(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            queue_s=start_s - self.arrival_s,
            start_s=start_s,
            ttft_s=self._ttft_s,
            itls_s=self._itls_s,
            latency_s=end_s - start_s,
            text="".join(self._texts),
            error=error,
            cached_tokens=cached_tokens,
        )


class CompletionClient:
    """Streams completions from one server. Use it as an async context manager."""

    def __init__(
        self,
        base_url: str,
        endpoint: str = "/v1/completions",
        *,
        model: str,
        headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        verify_tls: bool = True,
    ) -> None:
        """`extra_body`: more keys of every request's body."""
        self._url = base_url.rstrip("/") + endpoint
        self._body = {"model": model, "stream": True, "stream_options": {"include_usage": True}} | dict(
            extra_body or {}
        )
        self._session = make_session(headers, verify_tls, trace_configs=[_start_clock()])

    async def __aenter__(self) -> CompletionClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def complete(self, request: Request, arrival_s: float) -> Record:
        """Run one request that was due at `arrival_s`. Failures are recorded, not raised."""
        recorder = Recorder(request, arrival_s)
        body = self._body | {"prompt": request.prompt, "max_tokens": request.max_tokens}
        parser = EventParser()
        try:
            async with self._session.post(self._url, json=body, trace_request_ctx=recorder) as response:
                if response.status != 200:
                    raise StreamError(f"HTTP {response.status}: {_message(await response.text())}")
                async for data in response.content.iter_any():
                    now_s = time.monotonic()
                    for event in parser.feed(data):
                        recorder.event(event, now_s)
            return recorder.finish()
        except (aiohttp.ClientError, OSError, TimeoutError, StreamError, msgspec.DecodeError) as error:
            reason = str(error) if isinstance(error, StreamError) else f"{type(error).__name__}: {error}"
            return recorder.fail(reason, time.monotonic())


def make_session(headers: Mapping[str, str] | None, verify_tls: bool, **options: Any) -> aiohttp.ClientSession:
    """A session without a cap on connections: the default of 100 would queue the rest in the client."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=verify_tls, keepalive_timeout=60),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
        read_bufsize=READ_BYTES,
        headers=dict(headers or {}),
        **options,
    )


def _start_clock() -> aiohttp.TraceConfig:
    """Starts a request's clock when its connection stands and it is being written.

    Opening hundreds of connections keeps the client busy; that is queueing in the client, not the server's latency.
    """

    async def on_sent(
        session: aiohttp.ClientSession, context: SimpleNamespace, sent: aiohttp.TraceRequestHeadersSentParams
    ) -> None:
        context.trace_request_ctx.start_s = time.monotonic()

    config = aiohttp.TraceConfig()
    config.on_request_headers_sent.append(on_sent)
    return config


def _message(error: Any) -> str:
    """The readable part of an error's body, in any of the shapes that servers use."""
    if isinstance(error, str):
        try:
            error = msgspec.json.decode(error)
        except msgspec.DecodeError:
            return error[:MAX_ERROR_CHARS]
    if isinstance(error, dict):
        inner = error.get("error", error)
        error = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(error)[:MAX_ERROR_CHARS]
