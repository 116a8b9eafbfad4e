"""What came of late, and is expected to go on coming. Used by `CostPolicy`."""

from __future__ import annotations

import math
from collections import Counter, deque
from itertools import islice
from typing import NamedTuple

from seesaw.engine.planning.policy import Situation

_RECENT_S = 30.0  # what came within, goes on
_SILENCE = 3.0  # so many times as long as usual without a request is no accident
# What is sent at once may take some tenths of a second to come, which lie in one moment or in two.
_MOMENT_S = 1.0
_MOST_MOMENTS = 2
_FEW = 3  # requests in a moment are never taken for a burst,
_ACCIDENT = 3.0  # nor what is within so many standard deviations of the others
_PASSES = 2  # bursts hide one another: what the first leaves of them is little enough for the second


class Came(NamedTuple):
    """Between two looks."""

    at_s: float
    tokens: int  # of prompts
    requests: int


class Arrivals:
    """The rate at which requests come. What comes at once is none, however much it is and whatever came before."""

    def __init__(self) -> None:
        self._recent: deque[Came] = deque()
        self._tokens = self._requests = 0  # that had come at the last look
        self.requests_per_s = 0.0
        self.mean_tokens = 0.0  # of their prompts

    def look(self, situation: Situation) -> Came:
        """What came since the last look."""
        now_s, recent = situation.now_s, self._recent
        came = Came(now_s, situation.arrived_tokens - self._tokens, situation.arrived - self._requests)
        self._tokens, self._requests = situation.arrived_tokens, situation.arrived
        if came.requests > 0:
            recent.append(came)
        while recent and recent[0].at_s < now_s - _RECENT_S:
            recent.popleft()
        self.requests_per_s = self._rate(now_s)
        if self.requests_per_s:
            self.mean_tokens = sum(each.tokens for each in recent) / sum(each.requests for each in recent)
        return came

    def _rate(self, now_s: float) -> float:
        """No moment counts for more than the others let expect of it. So the requests of a benchmark, or of a batch,
        are no stream, though some came before them."""
        recent = self._recent
        moments_seen = (now_s - recent[0].at_s) / _MOMENT_S if recent else 0.0
        if moments_seen < _MOST_MOMENTS or len(recent) < 2:
            return 0.0
        by_moment: Counter[int] = Counter()
        for each in islice(recent, 1, None):  # the first opens the time in which the others came
            by_moment[int((each.at_s - recent[0].at_s) / _MOMENT_S)] += each.requests
        counts: list[float] = list(by_moment.values())
        for _ in range(_PASSES):
            others = sum(sorted(counts)[:-_MOST_MOMENTS])
            expected = others / max(1.0, moments_seen - _MOST_MOMENTS)
            most = expected + _ACCIDENT * math.sqrt(expected) + _FEW
            counts = [min(count, most) for count in counts]
        silence_s = now_s - recent[-1].at_s
        rate = sum(counts) / moments_seen / _MOMENT_S
        return min(rate, _SILENCE / silence_s) if silence_s else rate

    def explain(self, waiting: int) -> bool:
        """Whether requests keep coming, and all that wait came of late."""
        return waiting < self.requests_per_s * _RECENT_S
