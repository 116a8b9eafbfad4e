"""The garbage collector's part in a process that serves. Called by each of ours, once it is ready."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


def freeze_heap() -> None:
    """Leave what start-up made out of all later collections.

    A full collection stands still while it walks every object, and torch and transformers alone bring in enough of them
    for a tenth of a second. What is made from now on is collected as ever.
    """
    gc.collect()
    gc.freeze()


@contextmanager
def frozen_heap() -> Iterator[None]:
    """The same for a while, in a process that will drop what it has."""
    freeze_heap()
    try:
        yield
    finally:
        gc.unfreeze()
