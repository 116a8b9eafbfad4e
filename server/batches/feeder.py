"""Sends the rows of batches to the engine, and takes each batch from status to status until it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Sequence
from functools import partial

from seesaw.server.batches.answering import Answering
from seesaw.server.batches.committer import RETRY_S, Committer
from seesaw.server.batches.folder import DataFolder
from seesaw.server.batches.inputs import JSONLines
from seesaw.server.batches.job import Finished, Job, Taken
from seesaw.server.batches.objects import Batch, BatchError, File, RequestCounts
from seesaw.server.batches.outputs import write_outputs
from seesaw.server.batches.rows import CANCELLED, EXPIRED, check_input
from seesaw.server.batches.sender import Sender
from seesaw.server.batches.store import Numbered, Store
from seesaw.server.batches.window import Window
from seesaw.server.threads import OneThread

logger = logging.getLogger(__name__)


class Feeder:
    """Has one task for each batch that has not ended, from `start` to `close`."""

    def __init__(
        self,
        folder: DataFolder,
        store: Store,
        thread: OneThread,
        answering: Answering,
        window: Window,
        *,
        max_rows: int,
        max_row_bytes: int,
        retry_s: float = RETRY_S,
    ) -> None:
        """`thread` is the store's. `retry_s`: after which time what could not be written is tried again."""
        self._folder = folder
        self._store = store
        self._thread = thread
        self._sender = Sender(answering, window)
        self._window = window
        self._max_rows = max_rows
        self._max_row_bytes = max_row_bytes
        self._committer = Committer(store, thread, folder.path, self._on_kept, retry_s)
        self._writer = OneThread("batch-files")
        self._stop = threading.Event()
        self._jobs: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_completed = self.num_failed = 0  # rows, since the start

    @property
    def jobs(self) -> list[Job]:
        """Those that have not ended."""
        return [*self._jobs.values()]

    async def start(self) -> None:
        """Go on with what was not done when the server ended."""
        self._committer.start()
        for job in await self._thread.run(self._recover):
            self.add(job)

    async def close(self) -> None:
        """Send nothing more, and keep what is there. Rows without a result are sent again after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._stop.set()
        await asyncio.to_thread(self._writer.close)  # while the folder is ours: it renames files in it
        await self._committer.close()
        for job in self.jobs:
            if job.log is not None:
                job.log.close()

    def add(self, numbered: Numbered) -> None:
        """Run a batch that the store has."""
        job = Job(numbered.number, numbered.batch)
        self._jobs[job.batch.id] = job
        task = asyncio.create_task(self._run(job), name=job.batch.id)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self, id: str) -> bool:
        """Whether the batch was there to be cancelled, or is being cancelled already."""
        job = self._jobs.get(id)
        if job is None or job.batch.status not in ("validating", "in_progress", "cancelling"):
            return False
        if job.batch.status != "cancelling":
            job.change(status="cancelling", cancelling_at=int(time.time()))
            job.is_cancelled.set()
        if job.trouble is None:
            await self._committer.keep(job)
        else:
            self._committer.note(job)
        return True

    def shown(self, kept: Batch) -> Batch:
        """A batch that the store has, as clients are told of it."""
        job = self._jobs.get(kept.id)
        return kept if job is None else job.shown(kept)

    def _recover(self) -> list[Numbered]:
        open_batches = self._store.open_batches()
        self._folder.clean(self._store.file_ids(), {each.batch.id for each in open_batches})
        numbers = {each.number for each in open_batches}
        for number in self._store.batches_with_results():
            while number not in numbers and self._store.drop_results(number):
                pass
        return open_batches

    async def _run(self, job: Job) -> None:
        try:
            await self._live(job)
        except Exception:
            logger.exception("%s stands still", job.batch.id)
            job.trouble = BatchError("internal_error", "The server has failed; the batch goes on after a restart.")

    async def _live(self, job: Job) -> None:
        if job.batch.status == "validating" and not await self._validate(job):
            return
        if job.batch.in_progress_at is None:  # cancelled before it had rows
            await self._committer.keep(job)
            job.change(status="cancelled", cancelled_at=int(time.time()))
            return await self._end(job)
        restoring = partial(job.restore, self._store, self._folder.log(job.batch.id))
        counts = await self._committer.insist([job], partial(self._thread.run, restoring))
        job.change(request_counts=counts)
        if job.batch.status == "finalizing" and not job.is_complete and time.time() < job.batch.expires_at:
            job.change(status="in_progress", finalizing_at=None)  # the end of its log was lost
        if job.batch.status == "in_progress" and await self._feed_in_time(job):
            await self._committer.keep(job)
            if not job.is_complete:
                raise AssertionError(f"{job.batch.id}: rows were lost")
        await self._finish(job)

    async def _validate(self, job: Job) -> bool:
        """Whether it is fit to run; else it has ended."""
        source, batch = JSONLines(self._folder.input(job.batch.id)), job.batch
        checking = partial(check_input, source, batch.endpoint, self._max_rows, self._max_row_bytes, self._stop)
        checked = await self._committer.insist([job], partial(asyncio.to_thread, checking))
        if job.batch.status == "cancelling":
            return True
        now = int(time.time())
        if checked.errors is not None:
            job.change(status="failed", failed_at=now, errors=checked.errors)
            await self._end(job)
            return False
        job.change(status="in_progress", in_progress_at=now, request_counts=RequestCounts(checked.num_rows))
        await self._committer.keep(job)
        return True

    async def _feed_in_time(self, job: Job) -> bool:
        """Send rows until all have their results (True), or the batch is cancelled or expires (False)."""
        feeding, cancelled = asyncio.create_task(self._feed(job)), asyncio.create_task(job.is_cancelled.wait())
        try:
            await asyncio.wait(
                (feeding, cancelled),
                timeout=max(0.0, job.batch.expires_at - time.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            feeding.cancel()
            cancelled.cancel()
            await asyncio.gather(feeding, cancelled, return_exceptions=True)
        if feeding.cancelled():
            return False
        feeding.result()
        return True

    async def _feed(self, job: Job) -> None:
        def take(finished: Finished) -> None:
            job.finished.append(finished)
            self._committer.note(job)

        rows = job.unfinished(JSONLines(self._folder.input(job.batch.id)))
        await self._sender.send(job.number, rows, take)

    def _on_kept(self, taken: Taken) -> None:
        num_errors = sum(each.is_error for each in taken.finished)
        self.num_failed += num_errors
        self.num_completed += len(taken.finished) - num_errors
        self._window.keep(len(taken.finished), sum(each.request_bytes + len(each.line) for each in taken.finished))

    async def _finish(self, job: Job) -> None:
        """Write the files of a batch that gets no more results."""
        if job.batch.status == "in_progress":
            job.change(status="finalizing", finalizing_at=int(time.time()))
        await self._committer.keep(job)
        is_cancelled = job.batch.status == "cancelling"
        missing = CANCELLED if is_cancelled else EXPIRED
        writing = partial(write_outputs, self._store, self._folder, job.numbered, missing, self._stop)
        outputs = await self._committer.insist([job], partial(self._writer.run, writing))
        status = "cancelled" if is_cancelled else "expired" if outputs.num_missing else "completed"
        job.change(
            status=status,
            output_file_id=None if outputs.output is None else outputs.output.id,
            error_file_id=None if outputs.errors is None else outputs.errors.id,
            **{f"{status}_at": int(time.time())},
        )
        await self._end(job, outputs.files)

    async def _end(self, job: Job, files: Sequence[File] = ()) -> None:
        """Keep the last status of a batch, and forget what it needed to get there."""
        ending = partial(self._store.end, job.numbered, files)
        await self._committer.insist([job], partial(self._thread.run, ending))
        del self._jobs[job.batch.id]
        if job.log is not None:
            job.log.close()
        await asyncio.to_thread(self._folder.drop_batch, job.batch.id)
        with contextlib.suppress(sqlite3.Error):  # what is left is dropped at the next start
            while await self._thread.run(partial(self._store.drop_results, job.number)):
                pass
