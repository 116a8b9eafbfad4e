"""Leaving the program's main module out of the processes that we start: they need nothing of it.

multiprocessing has every child import it again. A script without `if __name__ == "__main__":` would then start an
engine in each worker, and one from standard input cannot be imported at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any

_prepare = spawn.get_preparation_data
_here = threading.local()  # other threads may start processes of the program's own meanwhile


def _prepare_without_main(name: str) -> dict[str, Any]:
    prepared = _prepare(name)
    if not getattr(_here, "left_out", False):
        return prepared
    return {key: value for key, value in prepared.items() if not key.startswith("init_main")}


spawn.get_preparation_data = _prepare_without_main


@contextmanager
def main_left_out() -> Iterator[None]:
    """Processes that this thread starts in the block, by any method, do not import the main module."""
    _here.left_out = True
    try:
        yield
    finally:
        _here.left_out = False
