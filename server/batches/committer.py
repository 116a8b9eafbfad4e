"""Brings results and changes of batches to the disk, those of all batches together, and goes on trying.

First the log has the lines, then a transaction of the store says where they are: whenever the process is killed, the
store knows of whole lines only, and what is behind them is cut off at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from seesaw.server.batches.job import Job, Taken
from seesaw.server.batches.objects import BatchError
from seesaw.server.batches.store import Numbered, Result, Store
from seesaw.server.threads import OneThread

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_S = 5.0


class Committer:
    """Has one task, from `start` to `close`."""

    def __init__(
        self, store: Store, thread: OneThread, path: Path, on_kept: Callable[[Taken], None], retry_s: float = RETRY_S
    ) -> None:
        """`path` is named where there is no room. `on_kept` hears of what has reached the disk."""
        self._store = store
        self._thread = thread
        self._path = path
        self._on_kept = on_kept
        self._retry_s = retry_s
        self._changed: dict[Job, None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._stop = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="committer")

    async def close(self) -> None:
        """Keep what is there, unless there is no room, and stop."""
        self._stop.set()
        self._wake.set()
        await self._task

    def note(self, job: Job) -> None:
        """The job has changed: keep it soon."""
        self._changed[job] = None
        self._wake.set()

    async def keep(self, job: Job) -> None:
        """Return when the job is on the disk as it is now, and nothing older of it is on its way there."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self.note(job)
        await waiter

    async def insist(self, jobs: Iterable[Job], work: Callable[[], Awaitable[T]]) -> T:
        """Do this until it succeeds. Meanwhile the jobs say why they stand still. Raises what it fails of only if all
        is being stopped."""
        while True:
            try:
                done = await work()
            except Exception as error:
                if self._stop.is_set():
                    raise
                self._say(jobs, error)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), self._retry_s)
            else:
                for job in jobs:
                    job.trouble = None
                return done

    def _say(self, jobs: Iterable[Job], error: Exception) -> None:
        full = is_full(error)
        if full:
            code, message = "no_space_left", f"There is no room left in {self._path}: the batch goes on when there is."
        else:
            code, message = "storage_error", f"{self._path} cannot be used ({error}): the batch goes on when it can."
        for job in jobs:
            if job.trouble is None:
                logger.error("%s: %s", job.batch.id, message, exc_info=None if full else error)
            job.trouble = BatchError(code, message)

    async def _run(self) -> None:
        while not self._stop.is_set() or self._changed:
            await self._wake.wait()
            self._wake.clear()
            work = {job: job.take() for job in self._changed}
            waiters, self._waiters = self._waiters, []
            self._changed = {}
            try:
                await self.insist(work, partial(self._thread.run, partial(commit, self._store, work)))
            except Exception as error:  # these rows will be sent again
                logger.warning("the last results could not be kept: %s", error, exc_info=not is_full(error))
                return
            for job, taken in work.items():
                job.change(request_counts=taken.batch.request_counts)
                self._on_kept(taken)
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)


def commit(store: Store, work: Mapping[Job, Taken]) -> None:
    """Bring all of it to the disk, or nothing. In the store's thread."""
    results: list[tuple[int, Result]] = []
    try:
        for job, taken in work.items():
            if taken.finished:
                starts = job.open_log.append([each.line for each in taken.finished])
                results += (
                    (job.number, Result(each.row, each.is_error, start, len(each.line)))
                    for each, start in zip(taken.finished, starts, strict=True)
                )
        store.update([Numbered(job.number, taken.batch) for job, taken in work.items()], results)
    except BaseException:
        for job, taken in work.items():
            if taken.finished:
                with contextlib.suppress(OSError):
                    job.open_log.cut()
        raise
    for job, taken in work.items():
        if taken.finished:
            job.open_log.keep(sum(len(each.line) for each in taken.finished))


def is_full(error: Exception) -> bool:
    """Whether there was no room on the disk."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
