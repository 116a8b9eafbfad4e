"""Who may enter, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from seesaw.server.batches import window
from seesaw.server.batches.window import MAX_BYTES, Place, Window

pytestmark = pytest.mark.anyio


async def enter(window: Window, batch: int, size_bytes: int = 1) -> asyncio.Task[Place]:
    """Somebody who has asked to."""
    task = asyncio.create_task(window.enter(batch, size_bytes))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return task


async def test_earlier_batches_go_first() -> None:
    window = Window(2, lambda num_entering: True)
    inside = [(await enter(window, 5)).result() for _ in range(2)]
    late, early, cancelled = await enter(window, 9), await enter(window, 2), await enter(window, 1)
    cancelled.cancel()
    inside[0].leave()
    assert (await early) and not late.done() and cancelled.cancelled()
    inside[1].leave()
    await late
    assert window.num_running == 2


async def test_results_in_memory_are_bounded() -> None:
    window = Window(2, lambda num_entering: True)
    for _ in range(4):
        (await enter(window, 1)).result().leave()
    waiting = await enter(window, 1)
    assert not waiting.done()
    window.keep(1, 1)
    (await waiting).leave(MAX_BYTES)
    window.keep(3, 3)
    large = await enter(window, 1)
    assert not large.done()
    window.keep(1, MAX_BYTES + 1)
    await large
    larger_than_all = await enter(window, 1, MAX_BYTES)
    assert not larger_than_all.done()
    large.result().leave()
    window.keep(1, 1)
    await larger_than_all


async def test_rows_on_their_way_to_the_engine_count_as_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "POLL_S", 0.0)
    num_waiting = 0
    tested = Window(8, lambda num_entering: num_waiting + num_entering < 2)
    first, second = (await enter(tested, 1)).result(), (await enter(tested, 1)).result()
    third = await enter(tested, 1)
    num_waiting = 1
    first.arrive()
    first.arrive()
    assert not third.done()
    num_waiting = 0  # of which the window hears from nobody
    await third
    second.leave()
    assert tested.num_running == 2


async def test_the_window_is_what_the_queue_took() -> None:
    window = Window(8, lambda num_entering: True)
    places = [(await enter(window, 1)).result() for _ in range(8)]
    for _ in range(5):
        window.shrink()
    for place in places[:5]:
        place.leave()
        window.keep(1, 1)
    entered = [await enter(window, 1) for _ in range(8)]
    assert sum(each.done() for each in entered) == 2  # 3 run, and a part of one more for each that left
    for each in entered:
        each.cancel()


async def test_one_row_is_always_sent() -> None:
    window = Window(8, lambda num_entering: False)
    first = (await enter(window, 1)).result()
    second = await enter(window, 1)
    assert not second.done()
    first.leave()
    window.keep(1, 1)
    await second
