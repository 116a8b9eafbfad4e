"""A histogram without locks against prometheus_client's own."""

from __future__ import annotations

import random

import prometheus_client
from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from seesaw.server.histogram import Histogram

BOUNDS = (0.1, 0.5, 1.0, 10.0)


def test_a_scrape_shows_what_the_librarys_shows() -> None:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("some_seconds", "Some times.", BOUNDS)
    ours.register(histogram)
    reference = prometheus_client.Histogram("some_seconds", "Some times.", buckets=BOUNDS, registry=theirs)
    assert generate_latest(ours) == generate_latest(theirs)
    rng = random.Random(0)
    for value in [*BOUNDS, *(rng.expovariate(1.0) for _ in range(1000)), 1e9]:
        histogram.observe(value)
        reference.observe(value)
    assert generate_latest(ours) == generate_latest(theirs)
