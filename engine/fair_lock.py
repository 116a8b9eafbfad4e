"""A lock for a loop that takes it for each turn. Used by `engine.llm`."""

from __future__ import annotations

import threading


class FairLock:
    """A context manager. Whoever waits has it next: one that lets go and takes it again at once is behind those.

    Who has it may take it again, as a handler of signals would.
    """

    def __init__(self) -> None:
        self._next = threading.RLock()  # held by who waits for the lock
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        with self._next:
            self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()
