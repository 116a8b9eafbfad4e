"""The output and error file of a batch that has ended, made of its log in the order of its input."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import NamedTuple

from seesaw.server.batches.folder import DataFolder, sync_file
from seesaw.server.batches.inputs import JSONLines
from seesaw.server.batches.objects import Batch, File, expires_at
from seesaw.server.batches.rows import RowError, RowResult, Stopped, make_row_id, read_rows
from seesaw.server.batches.store import Numbered, Store


class Outputs(NamedTuple):
    """Files that are in place, and are still to be told to the store; None where there was nothing to write."""

    output: File | None
    errors: File | None
    num_missing: int  # rows that had no result

    @property
    def files(self) -> list[File]:
        return [file for file in (self.output, self.errors) if file is not None]


def write_outputs(store: Store, folder: DataFolder, job: Numbered, missing: RowError, stop: threading.Event) -> Outputs:
    """Rows without a result get this error. May be done again after it was cut off, wherever that was: the files'
    names follow from the batch's. Raises Stopped soon after `stop` is set."""
    batch, num_missing = job.batch, 0
    rows = read_rows(JSONLines(folder.input(batch.id)), bytes(batch.request_counts.total))
    with (
        folder.log(batch.id).open("rb") as log,
        _Writer(folder, batch, "output") as output,
        _Writer(folder, batch, "error") as errors,
        closing(store.results(job.number)) as results,
    ):
        result = next(results, None)
        for row in rows:
            if stop.is_set():
                raise Stopped
            if result is None or result.row != row.number:
                num_missing += 1
                errors.write(RowResult(make_row_id(), row.request.custom_id, error=missing).line)
                continue
            log.seek(result.start)
            (errors if result.is_error else output).write(log.read(result.bytes))
            result = next(results, None)
    return Outputs(output.publish(), errors.publish(), num_missing)


class _Writer:
    """Writes a file of a batch; it is on the disk when the context ends."""

    def __init__(self, folder: DataFolder, batch: Batch, kind: str) -> None:
        self._folder = folder
        self._id = f"file-{batch.id.removeprefix('batch_')}-{kind}"
        self._filename = f"{batch.id}_{kind}.jsonl"
        self._expires_after = batch.output_expires_after
        self._size_bytes = 0

    def __enter__(self) -> _Writer:
        self._file = self._folder.upload(self._id).open("wb")
        return self

    def write(self, line: bytes) -> None:
        self._size_bytes += self._file.write(line)

    def __exit__(self, *_: object) -> None:
        with self._file:
            sync_file(self._file)

    def publish(self) -> File | None:
        """Put it in its place, unless it is empty."""
        if not self._size_bytes:
            self._folder.upload(self._id).unlink()
            return None
        self._folder.publish(self._id)
        now = int(time.time())
        return File(
            id=self._id,
            bytes=self._size_bytes,
            created_at=now,
            expires_at=expires_at(now, self._expires_after),
            filename=self._filename,
            purpose="batch_output",
        )
