"""What a rank sends to the engine: a ZeroMQ socket that one thread owns. Used by the worker and its copies."""

from __future__ import annotations

import msgspec
import zmq

from seesaw.engine.values.errors import ConfigError
from seesaw.engine.wire.commands import Failure, FromRank

FLUSH_MS = 10_000  # an upper bound only: the engine takes it at once
MAX_MESSAGE_CHARS = 1000


class Outbox:
    """Sends without blocking: the commands in flight, and so the reports, are bounded by the scheduler."""

    def __init__(self, rank: int, address: str) -> None:
        self._rank = rank
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PUSH)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()

    def send(self, message: FromRank) -> None:
        self._socket.send(self._encoder.encode(message))

    def fail(self, error: BaseException) -> None:
        """Say in one line why this rank cannot go on, and see that it is sent; the last message."""
        is_config = isinstance(error, ConfigError)
        text = str(error) if is_config else f"{type(error).__name__}: {error}"
        line = " ".join(text.split())[:MAX_MESSAGE_CHARS]
        self.send(Failure(self._rank, line, is_config))
        self.close(FLUSH_MS)

    def close(self, flush_ms: int = 0) -> None:
        self._context.destroy(linger=flush_ms)
