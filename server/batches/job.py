"""A batch that has not ended, as the feeder has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from seesaw.server.batches.inputs import Input
from seesaw.server.batches.log import ResultLog
from seesaw.server.batches.objects import Batch, BatchError, BatchErrors, RequestCounts
from seesaw.server.batches.rows import Row, read_rows
from seesaw.server.batches.store import Numbered, Store


class Finished(NamedTuple):
    """A row that has ended, and whose result is not yet on the disk."""

    row: int
    is_error: bool
    line: bytes
    request_bytes: int


class Taken(NamedTuple):
    """What is to be kept of a job at once."""

    finished: list[Finished]
    batch: Batch  # that counts them


@dataclass(eq=False)
class Job:
    """Belongs to the event loop, but for `log`."""

    number: int
    batch: Batch  # with the counts that are on the disk
    done: bytearray = field(default_factory=bytearray)  # a byte for each row, not 0 if it had a result at the start
    log: ResultLog | None = None  # once it is restored; the store's thread writes it
    finished: list[Finished] = field(default_factory=list)
    trouble: BatchError | None = None  # why it stands still
    is_cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def numbered(self) -> Numbered:
        return Numbered(self.number, self.batch)

    @property
    def open_log(self) -> ResultLog:
        """The log of a job that was restored."""
        assert self.log is not None
        return self.log

    @property
    def is_complete(self) -> bool:
        """Whether every row has a result on the disk."""
        counts = self.batch.request_counts
        return counts.completed + counts.failed == counts.total

    def change(self, **changes: Any) -> None:
        """In memory; the committer keeps it."""
        self.batch = msgspec.structs.replace(self.batch, **changes)

    def take(self) -> Taken:
        """All that is to be kept."""
        finished, self.finished = self.finished, []
        counts, num_errors = self.batch.request_counts, sum(each.is_error for each in finished)
        counts = RequestCounts(counts.total, counts.completed + len(finished) - num_errors, counts.failed + num_errors)
        return Taken(finished, msgspec.structs.replace(self.batch, request_counts=counts))

    def restore(self, store: Store, path: Path) -> RequestCounts:
        """Open the log at this path, cut behind what was kept, and find the rows that are done. In the store's
        thread."""
        size_bytes = path.stat().st_size if path.exists() else 0
        self.log = ResultLog(path, store.forget_results_behind(self.number, size_bytes))
        total = self.batch.request_counts.total
        self.done, completed, failed = bytearray(total), 0, 0
        for result in store.results(self.number):
            self.done[result.row] = 1
            completed, failed = completed + (not result.is_error), failed + result.is_error
        return RequestCounts(total, completed, failed)

    def unfinished(self, source: Input) -> Iterator[Row]:
        """The rows of its input that had no result at the start."""
        return read_rows(source, self.done)

    def shown(self, kept: Batch) -> Batch:
        """The batch as clients are told of it: as it is on the disk, and what it suffers from. While it does, they hear
        that they have cancelled it before the disk does."""
        if self.trouble is None:
            return kept
        batch = self.batch if self.batch.status == "cancelling" else kept
        return msgspec.structs.replace(batch, errors=BatchErrors([self.trouble]))
