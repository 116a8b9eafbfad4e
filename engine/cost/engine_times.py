"""All times of one engine: its layouts' steps, its transitions, its swaps. The scheduler owns and corrects them."""

from __future__ import annotations

import math

from seesaw.engine.cost.times import LayoutTimes, Measured
from seesaw.engine.parallel.layout import Layout, Plan

_CORRECTION = 0.3  # of a transition, or a swap, in what is expected of the next


class EngineTimes:
    """What was measured at the start, corrected by all that happened since."""

    def __init__(self, plan: Plan, measured: Measured) -> None:
        layouts = zip(plan.layouts, measured.layouts, strict=True)
        self._layouts = {layout: LayoutTimes(stages) for layout, stages in layouts}
        self.transition_s = measured.transition_s  # of the weights alone
        self._swap_bytes_per_s = {True: measured.swap_out_bytes_per_s, False: measured.swap_in_bytes_per_s}

    def of(self, layout: Layout) -> LayoutTimes:
        return self._layouts[layout]

    def swap_s(self, num_bytes: float, to_host: bool) -> float:
        """Seconds of copying whole blocks of so many bytes, by all ranks of a replica together."""
        return num_bytes / self._swap_bytes_per_s[to_host]

    def observe_transition(self, seconds: float) -> None:
        """All ranks have changed their weights."""
        self.transition_s += _CORRECTION * (seconds - self.transition_s)

    def observe_swap(self, num_bytes: int, seconds: float, to_host: bool) -> None:
        """All ranks of a replica have copied so many bytes together, the slowest in so many seconds."""
        if not (num_bytes and seconds > 0):
            return
        before = self._swap_bytes_per_s[to_host]
        rate = num_bytes / seconds
        self._swap_bytes_per_s[to_host] = rate if math.isinf(before) else before + _CORRECTION * (rate - before)
