"""Batches that have not ended, with their pace and the time that is left: for `server.page.status`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from seesaw.server.batches.objects import Batch

if TYPE_CHECKING:
    from seesaw.server.batches.job import Job

MAX_JOBS = 50  # the oldest, which are served first
PACE_SAMPLES = 60


class OpenJob(msgspec.Struct, frozen=True):
    """A batch as `/v1/batches` tells of it, and how it goes on."""

    batch: Batch
    rows_per_second: float  # of late; 0 while it waits for earlier ones, or stands still
    seconds_left: float | None  # at the pace of all; None if there is none


class Paces:
    """How fast each job goes: over so many of the last looks at it."""

    def __init__(self) -> None:
        self._looks: dict[int, deque[tuple[float, int]]] = {}  # by the job's number: when, and rows that were done

    def look(self, jobs: Sequence[Job], now_s: float) -> None:
        self._looks = {
            job.number: self._looks.get(job.number, deque(maxlen=PACE_SAMPLES))
            for job in jobs[:MAX_JOBS]
            if job.batch.status == "in_progress"
        }
        for job in jobs[:MAX_JOBS]:
            if job.number in self._looks:
                self._looks[job.number].append((now_s, _num_done(job)))

    def tell(self, jobs: Sequence[Job]) -> list[OpenJob]:
        """Of the first of them. Each ends behind those before it, since rows go in that order."""
        paces = {job.number: self._rows_per_second(job) for job in jobs}
        all_per_second = sum(paces.values())
        told, rows_left = [], 0
        for job in jobs[:MAX_JOBS]:
            rows_left += job.batch.request_counts.total - _num_done(job)
            seconds_left = round(rows_left / all_per_second, 1) if all_per_second else None
            told.append(OpenJob(job.shown(job.batch), round(paces[job.number], 3), seconds_left))
        return told

    def _rows_per_second(self, job: Job) -> float:
        looks = self._looks.get(job.number)
        if not looks:
            return 0.0
        (first_s, first_rows), (last_s, last_rows) = looks[0], looks[-1]
        return (last_rows - first_rows) / (last_s - first_s) if last_s > first_s else 0.0


def _num_done(job: Job) -> int:
    counts = job.batch.request_counts
    return counts.completed + counts.failed
