"""The schedule, and the limit of requests under way."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest

from seesaw.clients.driver import drive
from seesaw.clients.record import Record
from seesaw.clients.recorder import Request
from seesaw.clients.streaming import CompletionClient
from tests.clients.conftest import Site

pytestmark = pytest.mark.anyio
REQUESTS = [Request([0] * n, n, n) for n in range(1, 6)]


async def test_records_are_in_order_and_none_starts_early(site: Site) -> None:
    done: list[Record] = []
    start_s = time.monotonic()
    dues_s = [start_s + arrival_s for arrival_s in (0.0, 0.0, 0.01, 0.02, 0.03)]
    async with CompletionClient(site.url, model="m") as client:
        records = await drive(client, REQUESTS, dues_s, on_done=done.append)
    assert [record.output_tokens for record in records] == [1, 2, 3, 4, 5]
    assert sorted(done, key=lambda record: record.output_tokens) == records
    for record, due_s in zip(records, dues_s, strict=True):
        assert record.queue_s >= 0
        assert record.start_s - record.queue_s == pytest.approx(due_s)


async def test_all_are_under_way_at_once(site: Site) -> None:
    site.expected = 200  # more than aiohttp's default number of connections; none is answered before all are here
    async with CompletionClient(site.url, model="m") as client:
        records = await drive(client, [Request([0], 1, 1)] * 200, [time.monotonic()] * 200)
    assert not any(record.error for record in records)
    assert site.most_running == 200


async def test_the_limit_makes_requests_wait_in_the_client(site: Site) -> None:
    start_s = time.monotonic()
    async with CompletionClient(site.url, model="m") as client:
        records = await drive(client, REQUESTS, [start_s] * 5, max_concurrency=1)
    assert site.most_running == 1
    for earlier, later in pairwise(records):
        assert later.start_s >= earlier.end_s
        assert later.queue_s >= earlier.end_s - start_s
