"""Files and batches of one server, from its start to its end: the folder, the database and the feeder together.

Used by the handlers (`server.batches.routes`); opened by `server.http.app`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TypeVar

from fastapi import Request

from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.messages import LAST, EngineInfo
from seesaw.server.batches.answering import Answering, Endpoint
from seesaw.server.batches.committer import RETRY_S, is_full
from seesaw.server.batches.feeder import Feeder
from seesaw.server.batches.folder import DataFolder, data_path
from seesaw.server.batches.metrics import JobsCollector
from seesaw.server.batches.objects import Batch, BatchRequest, File
from seesaw.server.batches.store import Numbered, Store
from seesaw.server.batches.uploads import receive_upload
from seesaw.server.batches.window import Window
from seesaw.server.config import ServerConfig
from seesaw.server.http.errors import ConflictError, NoRoomError, NotFoundError
from seesaw.server.link.bridge import Bridge
from seesaw.server.openai.serving import Serving
from seesaw.server.threads import OneThread

logger = logging.getLogger(__name__)

T = TypeVar("T")

ROWS_PER_SEQUENCE = 2  # in the engine, for each sequence that may decode: as many wait as run
SHARE_OF_QUEUE = 1 / 2  # that rows may fill, so that no client's request is refused for them
EXPIRY_S = 60.0  # after which time it is looked again which files have expired
RUNNING_SHARE = 15 / 16  # of the sequences that may decode, what rows may have while clients come, who find room then
QUIET_S = 30.0  # after so long without a request of a client, rows may wait again


def open_jobs(
    config: ServerConfig, info: EngineInfo, bridge: Bridge, serving: Serving, endpoints: Mapping[str, Endpoint]
) -> Jobs:
    """The jobs of a server whose engine is ready. Raises ConfigError if the folder cannot be used."""
    answering = Answering(serving.respond, endpoints, priority=LAST)
    window = make_window(info, bridge, serving)
    jobs = Jobs(config, answering, window)
    bridge.metrics.add(JobsCollector(jobs.feeder, window))
    return jobs


def make_window(info: EngineInfo, bridge: Bridge, serving: Serving) -> Window:
    """What an engine that is ready can have beside the requests of clients, if some come."""

    def may_wait(num_entering: int) -> bool:
        if not bridge.has_engine:
            return False
        room, num_waiting = bridge.room, bridge.room.sequences + num_entering
        if num_waiting >= room.max_sequences * SHARE_OF_QUEUE or room.tokens >= room.max_tokens * SHARE_OF_QUEUE:
            return False
        if time.monotonic() - serving.last_arrival_s >= QUIET_S:
            return True
        return bridge.num_live + num_entering < info.max_num_seqs * RUNNING_SHARE

    return Window(ROWS_PER_SEQUENCE * info.max_num_seqs, may_wait)


class Jobs:
    """Methods raise NotFoundError, ConflictError and RequestError for what the client can mend, and NoRoomError."""

    def __init__(
        self,
        config: ServerConfig,
        answering: Answering,
        window: Window,
        retry_s: float = RETRY_S,
    ) -> None:
        """Opens the folder. `retry_s`: as of `Feeder`. Raises ConfigError."""
        self.folder = DataFolder(data_path(config))
        self._store = Store(self.folder.database)
        self._thread = OneThread("jobs")
        self.feeder = Feeder(
            self.folder,
            self._store,
            self._thread,
            answering,
            window,
            max_rows=config.max_batch_rows,
            max_row_bytes=config.max_body_bytes,
            retry_s=retry_s,
        )

    async def start(self) -> None:
        await self.feeder.start()
        self._expiring = asyncio.create_task(self._expire(), name="file-expiry")

    async def close(self) -> None:
        self._expiring.cancel()
        await asyncio.gather(self._expiring, return_exceptions=True)
        await self.feeder.close()
        await self._thread.run(self._store.close)
        self._thread.close()
        self.folder.close()

    # Files.

    async def add_file(self, request: Request) -> File:
        try:
            file = await receive_upload(request, self.folder)
        except OSError as error:
            raise self._no_room(error) from None
        try:
            await self._do(partial(self._store.add_file, file))
        except Exception:  # nobody would hear of it, and it would fill the disk
            with suppress(OSError):
                await asyncio.to_thread(self.folder.file(file.id).unlink)
            raise
        return file

    async def file(self, id: str) -> File:
        file = await self._do(partial(self._store.file, id))
        if file is None:
            raise NotFoundError(f"There is no file {id[:100]!r}.", "file_id")
        return file

    async def files(self, purpose: str | None, after: str | None, limit: int, *, descending: bool) -> list[File]:
        """As of the store."""
        return await self._do(partial(self._store.files, purpose, after, limit, descending=descending))

    async def delete_file(self, id: str) -> None:
        """Batches that have it go on: they have their input."""
        if not await self._delete(id):
            raise NotFoundError(f"There is no file {id[:100]!r}.", "file_id")

    async def _delete(self, id: str) -> bool:
        """Whether the file was there."""
        was_there = await self._do(partial(self._store.delete_file, id))
        with suppress(FileNotFoundError):
            await asyncio.to_thread(self.folder.file(id).unlink)
        return was_there

    async def _expire(self) -> None:
        """Delete files that have expired, from time to time: nobody is told of them any more."""
        while True:
            try:
                for id in await self._do(self._store.expired_files):
                    await self._delete(id)
            except Exception:
                logger.warning("expired files could not be deleted, which is tried again", exc_info=True)
            await asyncio.sleep(EXPIRY_S)

    # Batches.

    async def add_batch(self, body: BatchRequest) -> Batch:
        body.check()
        file = await self._do(partial(self._store.file, body.input_file_id))
        if file is None:
            raise NotFoundError(f"There is no file {body.input_file_id[:100]!r}.", "input_file_id")
        if file.purpose != "batch":
            raise RequestError("The input must be a file of the purpose batch.", "input_file_id")
        now = int(time.time())
        batch = Batch(
            id=f"batch_{uuid.uuid4().hex}",
            endpoint=body.endpoint,
            input_file_id=file.id,
            completion_window=body.completion_window,
            created_at=now,
            expires_at=now + body.window_s,
            metadata=body.metadata,
            output_expires_after=body.output_expires_after,
        )
        numbered = await self._do(partial(self._add, batch))
        self.feeder.add(numbered)
        return batch

    async def batch(self, id: str) -> Batch:
        batch = await self._do(partial(self._store.batch, id))
        if batch is None:
            raise NotFoundError(f"There is no batch {id[:100]!r}.", "batch_id")
        return self.feeder.shown(batch)

    async def batches(self, after: str | None, limit: int) -> list[Batch]:
        """As of the store."""
        return [*map(self.feeder.shown, await self._do(partial(self._store.batches, after, limit)))]

    async def cancel(self, id: str) -> Batch:
        is_cancelled = await self.feeder.cancel(id)
        batch = await self.batch(id)
        if not is_cancelled:
            raise ConflictError(f"A batch that is {batch.status} cannot be cancelled.", "batch_id")
        return batch

    def _add(self, batch: Batch) -> Numbered:
        try:
            self.folder.keep_input(batch.input_file_id, batch.id)
            return self._store.add_batch(batch)
        except FileNotFoundError:
            raise NotFoundError(f"There is no file {batch.input_file_id!r} any more.", "input_file_id") from None
        except Exception:
            self.folder.drop_batch(batch.id)
            raise

    async def _do(self, work: Callable[[], T]) -> T:
        try:
            return await self._thread.run(work)
        except (OSError, sqlite3.Error) as error:
            raise self._no_room(error) from None

    def _no_room(self, error: Exception) -> Exception:
        """What a client is told of an error that may be a full disk."""
        return NoRoomError("The server's disk is full: try again later.") if is_full(error) else error
