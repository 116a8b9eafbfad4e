"""What came of late, and is expected to go on coming. Used by `CostPolicy`."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from seesaw.engine.planning.policy import Situation

_RECENT_S = 30.0  # what came within, goes on
_SILENCE = 3.0  # so many times as long as usual without a request is no accident


class Came(NamedTuple):
    """Between two looks."""

    at_s: float
    tokens: int  # of prompts
    requests: int


class Arrivals:
    """The rate at which requests come. What comes at once is none, however much it is."""

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
        requests = sum(each.requests for each in recent)
        if recent and requests > recent[0].requests and now_s > recent[0].at_s:
            self.mean_tokens = sum(each.tokens for each in recent) / requests
            # The first opens the time in which the others came.
            self.requests_per_s = (requests - recent[0].requests) / (now_s - recent[0].at_s)
            if now_s > recent[-1].at_s:
                self.requests_per_s = min(self.requests_per_s, _SILENCE / (now_s - recent[-1].at_s))
        else:
            self.requests_per_s = 0.0
        return came

    def explain(self, waiting: int) -> bool:
        """Whether requests keep coming, and all that wait came of late."""
        return waiting < self.requests_per_s * _RECENT_S
