"""What `/metrics` shows of batches. Nothing of it grows with their number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from seesaw.server.batches.feeder import Feeder
from seesaw.server.batches.objects import Status
from seesaw.server.batches.window import Window
from seesaw.server.metrics import PREFIX

OPEN: tuple[Status, ...] = ("validating", "in_progress", "finalizing", "cancelling")


class JobsCollector(Collector):
    """Keeps nothing itself."""

    def __init__(self, feeder: Feeder, window: Window) -> None:
        self._feeder = feeder
        self._window = window

    def collect(self) -> Iterator[Metric]:
        rows = CounterMetricFamily(
            PREFIX + "batch_rows", "Rows of batches that ended since the start, by how.", labels=["outcome"]
        )
        rows.add_metric(["completed"], self._feeder.num_completed)
        rows.add_metric(["failed"], self._feeder.num_failed)
        yield rows
        yield GaugeMetricFamily(PREFIX + "batch_rows_in_flight", "Rows that the engine has.", self._window.num_running)
        jobs = self._feeder.jobs
        statuses = Counter(job.batch.status for job in jobs)
        batches = GaugeMetricFamily(PREFIX + "batches", "Batches that have not ended, by status.", labels=["status"])
        for status in OPEN:
            batches.add_metric([status], statuses[status])
        yield batches
        yield GaugeMetricFamily(
            PREFIX + "batches_stalled",
            "Batches of those that stand still, since the disk is full or cannot be written.",
            sum(job.trouble is not None for job in jobs),
        )
