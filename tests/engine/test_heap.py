"""How rare full collections are."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from seesaw.engine.heap import FULL_COLLECTIONS_SHARE, FullCollections, frozen_heap, tame_collector


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """The process's own, as it was."""
    callbacks, thresholds = gc.callbacks[:], gc.get_threshold()
    yield
    gc.callbacks[:] = callbacks
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_a_full_collection_waits_until_the_last_was_a_small_share_of_the_time() -> None:
    now_s = [100.0]
    before, collections = gc.get_threshold(), FullCollections(lambda: now_s[0])
    collections("start", {"generation": 2})
    now_s[0] += 0.25
    collections("stop", {"generation": 2})
    assert gc.get_threshold()[:2] == before[:2]
    assert gc.get_threshold()[2] > 1_000_000
    for waited_s in (1.0, 0.25 / FULL_COLLECTIONS_SHARE - 2.0):
        now_s[0] += waited_s
        collections("stop", {"generation": 0})
        assert gc.get_threshold()[2] > 1_000_000
    now_s[0] += 2.0
    collections("start", {"generation": 1})
    assert gc.get_threshold() == before


def test_a_process_is_tamed_once() -> None:
    tame_collector()
    tame_collector()
    assert sum(isinstance(each, FullCollections) for each in gc.callbacks) == 1


def test_a_heap_is_frozen_for_a_while() -> None:
    before = gc.get_freeze_count()
    with frozen_heap():
        assert gc.get_freeze_count() > before
    assert gc.get_freeze_count() == 0


def test_many_long_lived_objects_bring_no_full_collection_before_its_time() -> None:
    def full_ones_while_many_objects_come() -> int:
        before = gc.get_stats()[2]["collections"]
        held: list[object] = []
        held += [[held] for _ in range(500_000)]
        return int(gc.get_stats()[2]["collections"]) - before

    gc.collect()
    assert full_ones_while_many_objects_come() > 0
    times_s = iter([0.0, 0.0, 1.0])  # when it is made, and the first collection's two ends
    gc.callbacks.append(FullCollections(lambda: next(times_s, 2.0)))
    gc.collect()
    assert full_ones_while_many_objects_come() == 0
