"""The last minutes of an engine, by the snapshots that it sends: what the page draws. Used by `server.page.status`.

Counts nothing: a sample is the difference of two `Stats`. Rates go by the engine's clock, since a snapshot is seen a
while after it was made; the rest of the times are when it was seen.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from seesaw.engine.wire.messages import Stats
from seesaw.server.metrics import PHASES

N = TypeVar("N", int, float)

WINDOW_S = 600.0
SAMPLE_S = 1.0  # at least, between two samples
MAX_TRANSITIONS = 500  # those of an engine that does nothing else are not all shown


class Change(msgspec.Struct, frozen=True):
    """A change of layout that completed; of several between two snapshots, all of them."""

    at_s: float  # when it had ended, since the server's start
    changes: dict[str, int]  # how many, as in "P2->T2"
    seconds: dict[str, float]  # by part: drain, evacuate, weights


class Samples(msgspec.Struct, frozen=True):
    """By column; the oldest first, one about every second. Those of which nothing was heard are missing."""

    at_s: list[float]  # when each ended, since the server's start
    seconds: list[float]  # that each is long
    layout: list[str]  # at its end
    phases: dict[str, list[float]]  # which share of it each phase had, 0 to 1
    prompt_tokens_per_second: list[float]
    generation_tokens_per_second: list[float]
    requests_running: list[int]
    requests_waiting: list[int]
    requests_hosted: list[int]


class _Sample(NamedTuple):
    at_s: float
    seconds: float
    rate_s: float  # by the engine's own clock
    shares: dict[str, float]
    layout: str
    prompt_tokens: int  # new ones
    generation_tokens: int
    running: int
    waiting: int
    hosted: int


class History:
    """Of the last `WINDOW_S`. Times are seconds since it was made."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._origin_s = clock()
        self._samples: deque[_Sample] = deque(maxlen=int(WINDOW_S / SAMPLE_S))
        self._changes: deque[Change] = deque(maxlen=MAX_TRANSITIONS)
        self._heard_s = 0.0
        self._latest: Stats | None = None
        self._sampled_s = 0.0  # when the last sample ended
        self._sampled: Stats | None = None

    @property
    def now_s(self) -> float:
        return self._clock() - self._origin_s

    @property
    def heard_s(self) -> float:
        """When the latest snapshot came."""
        return self._heard_s

    def add(self, stats: Stats) -> bool:
        """The engine's newest snapshot. Whether it made a sample."""
        now_s = self._heard_s = self.now_s
        before, self._latest = self._latest, stats
        if before is None or self._sampled is None or _began_anew(before, stats):
            self._sampled, self._sampled_s = stats, now_s
            return False
        if stats.transitions != before.transitions:
            changes = _growth(before.transitions, stats.transitions)
            self._changes.append(Change(now_s, changes, _growth(before.transition_seconds, stats.transition_seconds)))
        if now_s - self._sampled_s < SAMPLE_S:
            return False
        self._samples.append(_difference(self._sampled, stats, now_s, now_s - self._sampled_s))
        self._sampled, self._sampled_s = stats, now_s
        return True

    def samples(self, after_s: float) -> Samples:
        """Those that ended later than that."""
        first_s = max(after_s, self.now_s - WINDOW_S)
        chosen = [each for each in self._samples if each.at_s > first_s]
        return Samples(
            [round(each.at_s, 3) for each in chosen],
            [round(each.seconds, 3) for each in chosen],
            [each.layout for each in chosen],
            {phase: [round(each.shares.get(phase, 0.0), 3) for each in chosen] for phase in PHASES},
            [round(each.prompt_tokens / each.rate_s, 1) for each in chosen],
            [round(each.generation_tokens / each.rate_s, 1) for each in chosen],
            [each.running for each in chosen],
            [each.waiting for each in chosen],
            [each.hosted for each in chosen],
        )

    def changes(self, after_s: float) -> list[Change]:
        """Those that ended later than that."""
        first_s = max(after_s, self.now_s - WINDOW_S)
        return [each for each in self._changes if each.at_s > first_s]


def _began_anew(before: Stats, after: Stats) -> bool:
    """Another engine counts from zero."""
    return (
        after.prompt_tokens < before.prompt_tokens
        or after.generation_tokens < before.generation_tokens
        or sum(after.phase_seconds.values()) < sum(before.phase_seconds.values())
    )


def _difference(before: Stats, after: Stats, at_s: float, seconds: float) -> _Sample:
    grown = _growth(before.phase_seconds, after.phase_seconds)
    total_s = sum(grown.values())
    return _Sample(
        at_s,
        seconds,
        # A clock that stands still, as a simulated host's may, says nothing.
        total_s or seconds,
        {phase: each_s / total_s for phase, each_s in grown.items()} or {after.phase: 1.0},
        after.layout,
        after.prompt_tokens - before.prompt_tokens,
        after.generation_tokens - before.generation_tokens,
        after.requests_running,
        after.requests_waiting,
        after.requests_hosted,
    )


def _growth(before: Mapping[str, N], after: Mapping[str, N]) -> dict[str, N]:
    """What has grown, and by how much."""
    grown = {key: value - before.get(key, 0) for key, value in after.items()}
    return {key: value for key, value in grown.items() if value > 0}
