"""What there is of an output that is not finished: a folder in which each row has at most one result.

The log and the store are those of batches, so whatever is killed leaves whole results and nothing else, and the output
is made of them when all are there. Synchronous, for one thread at a time: `server.offline.run` has a thread for it.
"""

from __future__ import annotations

import gzip
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO

from seesaw.engine.values.errors import ConfigError
from seesaw.server.batches.committer import commit
from seesaw.server.batches.folder import FolderLock, sync_file, sync_folder
from seesaw.server.batches.job import Finished, Job
from seesaw.server.batches.objects import Batch, RequestCounts
from seesaw.server.batches.rows import Row
from seesaw.server.batches.store import Store
from seesaw.server.offline.parquet import ParquetWriter, is_parquet
from seesaw.server.offline.source import UNREADABLE, Source


class Partial:
    """Of one output; other processes are kept out until `close`."""

    def __init__(self, path: Path, source: Source, model: str) -> None:
        """Go on with what is in the folder, or begin. Raises ConfigError if it cannot be used, or is of another input
        or model."""
        self.path = path
        self.source = source
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts are nobody else's
            self._lock = FolderLock(path)
        except BlockingIOError:
            raise ConfigError(f"another run writes to {path}: wait for it, or name another output") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be made: {error.strerror}; name an output where you can write") from None
        with ExitStack() as stack:
            stack.callback(self._lock.close)
            self._files = stack.enter_context(ExitStack())
            self.store = self._files.enter_context(closing(Store(database(path))))
            try:
                [numbered] = self.store.open_batches() or [self.store.add_batch(_begun(source, model))]
                self.job = Job(numbered.number, numbered.batch)
                self._check_same(numbered.batch, model)
                self.job.change(request_counts=self.job.restore(self.store, self._log))
            except (OSError, sqlite3.Error) as error:
                raise ConfigError(f"{path} cannot be used: {error}; make room, or name another output") from None
            self._files.callback(self.job.open_log.close)
            self._open = stack.pop_all()

    @property
    def counts(self) -> RequestCounts:
        """Of the rows whose results are on the disk."""
        return self.job.batch.request_counts

    @property
    def trouble(self) -> str | None:
        """Why results do not reach the disk, if they do not."""
        return None if self.job.trouble is None else self.job.trouble.message

    @property
    def is_complete(self) -> bool:
        return self.job.is_complete

    def unfinished(self) -> Iterator[Row]:
        """The rows that had no result when this was opened, in order. Raises ConfigError if the input has changed."""
        try:
            yield from self.job.unfinished(self.source.input)
        except (*UNREADABLE, IndexError):
            raise ConfigError(f"{self.source.path} has changed since it was checked: run this again") from None

    def take(self, results: Sequence[Finished]) -> None:
        """They are to be kept. Of rows that have one already, they are passed over."""
        for each in results:
            if not self.job.done[each.row]:
                self.job.done[each.row] = 1
                self.job.finished.append(each)

    def keep(self, results: Sequence[Finished]) -> None:
        """As `take`, and they are on the disk when this returns."""
        self.take(results)
        taken = self.job.take()
        commit(self.store, {self.job: taken})
        self.job.change(request_counts=taken.batch.request_counts)

    def finish(self, output: Path) -> None:
        """Write all results, in the order of the input, and remove the folder; only `close` may follow. It may be done
        again if it was cut off, wherever that was."""
        temporary = output.with_name(f"{output.name}.tmp")
        with (
            _writer(temporary, output) as writer,
            self._log.open("rb") as log,
            closing(self.store.results(self.job.number)) as results,
        ):
            for result in results:
                log.seek(result.start)
                writer.write(log.read(result.bytes))
        with temporary.open("rb") as file:
            sync_file(file)
        os.replace(temporary, output)
        sync_folder(output.parent)
        self._files.close()
        database(self.path).unlink()  # first: what is left then is known to be over
        shutil.rmtree(self.path, ignore_errors=True)

    def close(self) -> None:
        """Idempotent. What is not finished can be gone on with."""
        self._open.close()

    def _check_same(self, kept: Batch, model: str) -> None:
        differs = "" if kept.input_file_id == self.source.digest else "input"
        differs = differs or ("" if kept.metadata == {"model": model} else "model")
        if differs:
            raise ConfigError(
                f"{self.path} has results of another {differs}: name that one to go on with them, remove the folder to "
                "begin anew, or name another output"
            )

    @property
    def _log(self) -> Path:
        return self.path / "results.log"


def database(path: Path) -> Path:
    """It is there while the folder has something to go on with."""
    return path / "jobs.sqlite"


def _begun(source: Source, model: str) -> Batch:
    now = int(time.time())
    return Batch(
        id="run",
        endpoint="",
        input_file_id=source.digest,
        completion_window="",
        status="in_progress",
        created_at=now,
        expires_at=now,
        request_counts=RequestCounts(source.num_rows),
        metadata={"model": model},
    )


def _writer(path: Path, output: Path) -> IO[bytes] | gzip.GzipFile | ParquetWriter:
    """Into this path what belongs into an output of that name."""
    if is_parquet(output):
        return ParquetWriter(path)
    return gzip.open(path, "wb") if output.suffix == ".gz" else path.open("wb")
