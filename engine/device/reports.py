"""Tells the engine what the device has done, when it has done it. Used by the worker and its copies on CUDA."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

from seesaw.engine.wire.commands import Report

Pending = tuple[torch.cuda.Event, Callable[[], Report]]


class EventReports:
    """A thread that waits for events, in the order in which they were added, and sends a report at each.

    So the thread that launches never waits for the device. `send` and `fail` are called in this thread only: give
    them a socket of their own.
    """

    def __init__(
        self,
        device: torch.device,
        send: Callable[[Report], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._device = device
        self._send = send
        self._fail = fail
        self._pending: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="reports", daemon=True)
        self._thread.start()

    def add(self, done: torch.cuda.Event, report: Callable[[], Report]) -> None:
        """Send what `report` returns once `done`, which has been recorded, has come."""
        self._pending.put((done, report))

    def close(self) -> None:
        """Report what was added and end. Idempotent."""
        self._pending.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            torch.cuda.set_device(self._device)
            while (pending := self._pending.get()) is not None:
                done, report = pending
                done.synchronize()
                self._send(report())
        except BaseException as error:
            self._fail(error)
