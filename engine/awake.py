"""Time in which this process itself ran. A deadline goes by it, since a host may stand still (a suspended laptop, a
paused machine, a stopped process group) for longer than any timeout, and everybody on it did.

Used by whoever waits for another process: the executor, and the server.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

SLICE_S = 1.0  # longest single wait
GAP_S = 2 * SLICE_S  # a longer time between two looks at the clock counts as so much


class AwakeClock:
    """Looked at once a second or more often, it shows the time; it never shows more than went by."""

    def __init__(self) -> None:
        self._seen_s = time.monotonic()
        self._awake_s = 0.0

    def now(self) -> float:
        """Seconds, of which only differences mean something."""
        seen_s = time.monotonic()
        self._awake_s += min(seen_s - self._seen_s, GAP_S)
        self._seen_s = seen_s
        return self._awake_s


def waits(timeout_s: float) -> Iterator[float]:
    """Seconds to wait, time after time, until this process has run for so long. Always at least one wait."""
    clock = AwakeClock()
    left_s = timeout_s
    while True:
        yield min(max(left_s, 0.0), SLICE_S)
        left_s = timeout_s - clock.now()
        if left_s <= 0:
            return
