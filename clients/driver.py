"""Sends requests when they are due and collects their records. Called by `clients.load_test`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence

from seesaw.clients.record import Record
from seesaw.clients.recorder import Request
from seesaw.clients.streaming import CompletionClient


async def drive(
    client: CompletionClient,
    requests: Sequence[Request],
    due_s: Sequence[float],
    max_concurrency: int | None = None,
    on_done: Callable[[Record], None] = lambda record: None,
) -> list[Record]:
    """Send request i at `due_s[i]` (ascending, on the monotonic clock); all records, in order.

    The schedule is absolute: a late request does not delay those after it. At most `max_concurrency` requests
    are under way at once; those that are due wait, and their records say how long. `on_done` gets each record as soon
    as it is there: if this is cancelled, those are all.
    """
    gate = contextlib.nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)

    async def run(request: Request, due_s: float) -> Record:
        async with gate:
            record = await client.complete(request, due_s)
        on_done(record)
        return record

    async with asyncio.TaskGroup() as group:
        tasks = []
        for request, each_s in zip(requests, due_s, strict=True):
            delay_s = each_s - time.monotonic()
            if delay_s > 0:
                await asyncio.sleep(delay_s)
            tasks.append(group.create_task(run(request, each_s)))
    return [task.result() for task in tasks]
