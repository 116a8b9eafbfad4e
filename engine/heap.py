"""The garbage collector's part in a process that serves. Called by each of ours, once it is ready."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FULL_COLLECTIONS_SHARE = 0.005  # of the time, at most, in which they stand still
NEVER = 1_000_000_000  # a threshold that no process gets to


def tame_collector() -> None:
    """Leave what start-up made out of all later collections, and keep full ones rare.

    A full collection stands still while it walks every object: torch and transformers alone bring in enough of them for
    a tenth of a second, and the streams of a thousand clients, once a second, as many. What dies young is collected
    as ever.
    """
    _freeze()
    if not any(isinstance(each, FullCollections) for each in gc.callbacks):
        gc.callbacks.append(FullCollections())


@contextmanager
def frozen_heap() -> Iterator[None]:
    """Leave out what there is for a while, in a process that will drop what it has."""
    _freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _freeze() -> None:
    gc.collect()
    gc.freeze()


class FullCollections:
    """After each, the next has to wait for so long that their share of the time stays small. The collector calls this
    at both ends of every collection, whichever thread began it."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._thresholds = gc.get_threshold()
        self._began_s = clock()
        self._next_s = math.inf  # when one may come again, while none may

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        now_s = self._clock()
        if info["generation"] == 2:
            if phase == "start":
                self._began_s = now_s
            else:
                self._next_s = now_s + (now_s - self._began_s) / FULL_COLLECTIONS_SHARE
                gc.set_threshold(*self._thresholds[:2], NEVER)
        elif now_s >= self._next_s:
            gc.set_threshold(*self._thresholds)
            self._next_s = math.inf
