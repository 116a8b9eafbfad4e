"""One streamed completion over HTTP, and the clock beside it. Called by `clients.driver`.

The hot path of the load test: everything done for each event is done at this speed, or the client is what it measures.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec

from seesaw.clients.events import EventParser
from seesaw.clients.messages import MAX_BYTES, message_of
from seesaw.clients.record import Record
from seesaw.clients.recorder import Recorder, Request, StreamError

TIMEOUT_S = 6 * 3600.0
READ_BYTES = 1 << 20


class CompletionClient:
    """Streams completions, or answers of a chat, from one server. Use it as an async context manager."""

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
        """An endpoint that ends in `/chat/completions` gets each prompt as a user's message.

        `extra_body`: more keys of every request's body.
        """
        self._is_chat = endpoint.rstrip("/").endswith("/chat/completions")
        self._url = base_url.rstrip("/") + endpoint
        self._body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
        self._extra_body = dict(extra_body or {})
        self._session = make_session(headers, verify_tls, trace_configs=[_start_clock()])

    async def __aenter__(self) -> CompletionClient:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def complete(self, request: Request, arrival_s: float) -> Record:
        """Run one request that was due at `arrival_s`. Failures are recorded, not raised."""
        recorder = Recorder(request, arrival_s)
        parser = EventParser()
        try:
            async with self._session.post(self._url, json=self._json(request), trace_request_ctx=recorder) as response:
                if response.status != 200:
                    raise StreamError(f"HTTP {response.status}: {await _said(response)}")
                head = b""
                async for data in response.content.iter_any():
                    now_s = time.monotonic()
                    head = head or data
                    for event in parser.feed(data):
                        recorder.event(event, now_s)
                for event in parser.end():
                    recorder.event(event, time.monotonic())
            if not parser.has_events:
                raise StreamError(f"the answer is no stream of events: {message_of(head[:MAX_BYTES])}")
            return recorder.finish()
        except StreamError as error:
            return recorder.fail(str(error), time.monotonic())
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError, msgspec.DecodeError, RecursionError) as error:
            return recorder.fail(f"{type(error).__name__}: {error}", time.monotonic())

    def _json(self, request: Request) -> dict[str, Any]:
        prompt: dict[str, Any] = {"prompt": request.prompt}
        if self._is_chat:
            prompt = {"messages": [{"role": "user", "content": request.prompt}]}
        return self._body | {"max_tokens": request.max_tokens} | prompt | self._extra_body


async def _said(response: aiohttp.ClientResponse) -> str:
    return message_of(await response.content.read(MAX_BYTES)) or str(response.reason)


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
