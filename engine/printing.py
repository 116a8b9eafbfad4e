"""Printing that decides nothing: whoever reads what a server says may be gone, or read nothing, or have no room.

Called at the start of the server, the engine process and the workers.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import threading
from collections import deque

MAX_WAITING = 10_000  # pieces of text that nobody has taken; what comes then is dropped
DRAIN_S = 1.0  # for somebody to take the last ones


def print_in_background() -> None:
    """From here on, printing and logging neither wait nor fail in this process."""
    before = sys.stderr
    sys.stdout, sys.stderr = _Background(1), _Background(2)
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is before:
            handler.setStream(sys.stderr)
    atexit.register(drain)


def drain() -> None:
    """Give the last words a moment to be taken. Before an end that runs no exit handlers."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _Background):
            stream.drain(DRAIN_S)


class _Background(io.TextIOBase):
    """A text stream to a file descriptor, which a thread writes to."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque(maxlen=MAX_WAITING)
        self._changed = threading.Condition()
        self._is_writing = False
        threading.Thread(target=self._run, name="printer", daemon=True).start()

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        with self._changed:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append(text.encode(self.encoding, self.errors))
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing is kept back: the thread writes as fast as somebody reads."""

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._is_writing, timeout_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                data = memoryview(b"".join(self._waiting))
                self._waiting.clear()
                self._is_writing = True
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                pass  # nobody reads, or there is no room: the next words may fare better
