"""A client's connection, with bounds on its time and size. uvicorn makes one of each that it accepts.

uvicorn itself waits for ever for the rest of a request, and takes heads of any size. Of its two parsers this is
httptools', in C: with h11 a server that streams took a fifth more of its processor.
"""

from __future__ import annotations

import asyncio
import resource
from enum import Enum
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from seesaw.engine.values.wording import as_size
from seesaw.server.config import ServerConfig
from seesaw.server.http.errors import RETRY_AFTER_S, ErrorInfo
from seesaw.server.http.middleware import is_upload

RESERVED_FILES = 64  # for what is no connection
MAX_PIPELINED = 16  # requests that may be here before the first is answered


class Awaited(Enum):
    """What a client may be late with."""

    HEAD = "head"
    BODY = "body"


def connection_class(config: ServerConfig) -> type[HttpToolsProtocol]:
    """What uvicorn is to make connections of."""

    class Bounded(Connection):
        limits = config
        max_connections = _max_connections(config)

    return Bounded


def _max_connections(config: ServerConfig) -> int:
    """No more than leave descriptors for all else: without one nobody could even be refused."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return config.max_connections if soft < 0 else min(config.max_connections, max(1, soft - RESERVED_FILES))


class Connection(HttpToolsProtocol):
    """One that must send heads and bodies in time and within a size, and take what it is sent. Else it hears why, in
    OpenAI's shape, and is closed."""

    limits: ServerConfig
    max_connections: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._part: Awaited | None = None  # of a request, that has begun to come
        self._awaited: Awaited | None = None
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
        # Piece by piece: the parser takes any head.
        while data and self._part is not Awaited.BODY and not self.transport.is_closing():
            room = self.limits.max_header_bytes - self._head_bytes
            if room <= 0:
                most = as_size(self.limits.max_header_bytes)
                return self._refuse(ErrorInfo(431, f"The request's head is larger than {most}: send fewer headers."))
            self._head_bytes += min(room, len(data))
            super().data_received(data[:room])
            data = data[room:]
        if data and not self.transport.is_closing():
            super().data_received(data)
        self._await_client()

    # What the parser finds.

    def on_message_begin(self) -> None:
        self._part = Awaited.HEAD
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._part, self._head_bytes = Awaited.BODY, 0
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            raise ValueError("too many requests at once")  # which the parser makes an error of what was sent

    def on_message_complete(self) -> None:
        self._part, self._head_bytes = None, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._part is not None:
            self._unset_keepalive_if_required()  # it does not rest: part of its next request is here
        self._await_client()

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
        awaited: Awaited | None = None
        if not self.pipeline:  # else it waits for us
            if self._part is Awaited.BODY:
                awaited = Awaited.BODY
            elif self._is_unasked and (self._part is Awaited.HEAD or self.timeout_keep_alive_task is None):
                awaited = Awaited.HEAD
        if awaited is self._awaited and not (awaited is Awaited.BODY and self._is_uploading):
            return
        self._awaited = awaited
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if awaited is not None:
            limits = self.limits
            timeout_s = limits.header_timeout_s if awaited is Awaited.HEAD else limits.body_timeout_s
            self._deadline = self.loop.call_later(timeout_s, self._give_up, timeout_s)

    @property
    def _is_unasked(self) -> bool:
        """Whether all that it asked for is answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _is_uploading(self) -> bool:
        """Whether it sends a file, which may take any time as long as something comes."""
        return self.scope is not None and is_upload({**self.scope, "root_path": self.limits.root_path})

    def _give_up(self, timeout_s: float) -> None:
        if not self.transport.is_closing():
            self._refuse(ErrorInfo(408, f"The request was not here within {timeout_s:g} s."))

    def _refuse(self, error: ErrorInfo) -> None:
        """The last that this client hears, unless it is being answered."""
        is_new = not self.cycle.response_started if self._part is Awaited.BODY else self._is_unasked
        if is_new and not self.pipeline:
            response = error.response
            head = [b"HTTP/1.1 %d %b" % (error.status, HTTPStatus(error.status).phrase.encode())]
            head += [b"%b: %b" % header for header in (*response.raw_headers, (b"connection", b"close"))]
            self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self.transport.close()
