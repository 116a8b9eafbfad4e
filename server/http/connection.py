"""A client's connection, with bounds on its time and size. uvicorn makes one of each that it accepts.

uvicorn itself waits for ever for the rest of a request, and takes heads of any size that come at once. Of its two
parsers this is h11's, whose state says what is being waited for. httptools' takes a sixth less of a processor, but
drops the body of a request that offers an upgrade (`curl --http2`, Java's client), and an answer behind which there is
garbage.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from seesaw.engine.values.wording import as_size
from seesaw.server.config import ServerConfig
from seesaw.server.http.errors import RETRY_AFTER_S, ErrorInfo
from seesaw.server.http.middleware import is_upload

RESERVED_FILES = 64  # for what is no connection
# Of a body: each takes 10 us of the loop, however small it is, so 256 KiB that come at once might be 0.4 s.
FREE_CHUNKS = 16_384
LEAST_CHUNK_BYTES = 64  # what others must have on average


def connection_class(config: ServerConfig) -> type[H11Protocol]:
    """What uvicorn is to make connections of."""

    class Bounded(Connection):
        limits = config
        max_connections = _max_connections(config)

    return Bounded


def _max_connections(config: ServerConfig) -> int:
    """No more than leave descriptors for all else: without one nobody could even be refused."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return config.max_connections if soft < 0 else min(config.max_connections, max(1, soft - RESERVED_FILES))


class Parser(h11.Connection):
    """One that finds nothing more once a body came in too many chunks."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._num_chunks = 0
        self._chunk_bytes = 0

    @property
    def has_too_many_chunks(self) -> bool:
        return self._num_chunks > FREE_CHUNKS + self._chunk_bytes // LEAST_CHUNK_BYTES

    def next_event(self) -> Any:
        if self.has_too_many_chunks:
            return h11.NEED_DATA
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._num_chunks = self._chunk_bytes = 0
        elif isinstance(event, h11.Data):
            self._num_chunks += event.chunk_start
            self._chunk_bytes += len(event.data)
        return event


class Connection(H11Protocol):
    """One that must send heads and bodies in time and within a size, and take what it is sent. Else it hears why, in
    OpenAI's shape, and is closed."""

    limits: ServerConfig
    max_connections: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn: Parser = Parser(h11.SERVER, self.limits.max_header_bytes + 1)  # we refuse, not h11
        self._awaited: object = None  # h11's state of the client, while it may be late
        self._deadline: asyncio.TimerHandle | None = None
        self._send_deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        is_full = len(self.connections) >= self.max_connections
        super().connection_made(transport)
        if is_full:
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            self._refuse(ErrorInfo(503, "The server has too many connections; try again later.", headers=retry))
        else:
            self._await_client()

    def connection_lost(self, exc: Exception | None) -> None:
        self._awaited = None
        for deadline in (self._deadline, self._send_deadline):
            if deadline is not None:
                deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Piece by piece: h11 takes any head that is whole.
        while data and self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            room = self.limits.max_header_bytes - self._head_bytes
            if room <= 0:
                most = as_size(self.limits.max_header_bytes)
                return self._refuse(ErrorInfo(431, f"The request's head is larger than {most}: send fewer headers."))
            self._head_bytes += min(room, len(data))
            super().data_received(data[:room])
            data = data[room:]
        if self.conn.their_state is not h11.IDLE:
            self._head_bytes = 0
        if data and not self.transport.is_closing():
            super().data_received(data)
        self._await_client()

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.has_too_many_chunks and not self.transport.is_closing():
            self._refuse(ErrorInfo(400, "The body came in too many chunks: send fewer, of more bytes."))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_client()  # part of its next request may have been here

    def send_400_response(self, msg: str) -> None:
        self._refuse(ErrorInfo(400, msg))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_deadline is None:
            self._send_deadline = self.loop.call_later(self.limits.send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def _await_client(self) -> None:
        """It has so long for the rest of what it is sending, however much comes meanwhile."""
        state = self.conn.their_state
        is_resting = state is h11.IDLE and self.timeout_keep_alive_task is not None
        awaited = state if state in (h11.IDLE, h11.SEND_BODY) and not is_resting else None
        if awaited is self._awaited and not (awaited is h11.SEND_BODY and self._is_uploading):
            return
        self._awaited = awaited
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if awaited is not None:
            limits = self.limits
            timeout_s = limits.header_timeout_s if awaited is h11.IDLE else limits.body_timeout_s
            self._deadline = self.loop.call_later(timeout_s, self._give_up, timeout_s)

    @property
    def _is_uploading(self) -> bool:
        """Whether it sends a file, which may take any time as long as something comes."""
        return self.scope is not None and is_upload({**self.scope, "root_path": self.limits.root_path})

    def _give_up(self, timeout_s: float) -> None:
        if not self.transport.is_closing():
            self._refuse(ErrorInfo(408, f"The request was not here within {timeout_s:g} s."))

    def _refuse(self, error: ErrorInfo) -> None:
        """The last that this client hears, unless it is being answered."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            response = error.response
            head = [b"HTTP/1.1 %d %b" % (error.status, STATUS_PHRASES[error.status])]
            head += [b"%b: %b" % header for header in (*response.raw_headers, (b"connection", b"close"))]
            self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self.transport.close()
