"""Why devices computed nothing while there was work: `Stats.idle_seconds`, and the idle rows of the trace.

`Scheduler`, `Lifecycle` and `Transitions` say what happens; nothing is decided here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from seesaw.engine.trace import Trace

DRAIN = "drain"  # a change of layout waits for the steps in flight, or for sequences on their way in
WEIGHTS = "weights"  # the change itself, evacuation included
SWAP_IN = "swap_in"  # nothing can run before copies have ended: sequences on their way in, or room that others leave
PIPELINE = "pipeline"  # a step is in flight, but the slowest stage had to wait for others
HOST = "host"  # there was something to run: the engine's loop, or the way to the ranks, was late
NO_WORK = ""  # not counted


@dataclass
class _Watch:
    """A replica's time is accounted for up to `since_s`.

    While nothing is in flight, `cause` says why, once that is known. `last` is a span of idle time that is not counted
    yet: the next step may show that it was shorter.
    """

    since_s: float
    cause: str | None = None
    last: tuple[float, float, str] | None = None


class IdleTime:
    """Splits the time of each replica into steps, idle time by cause, and time without work.

    The scheduler sees when all ranks reported a step, and how long it kept the slowest of them busy. What lies between
    two reports beyond that is idle. So of a pipeline it is the slowest stage that is watched: filling it counts, once,
    when its first step comes through, and draining it, when the other stages idle just as long, does not; stages that
    are idle because they have less to do than the slowest do not count either.

    Seconds are of the whole engine: each of dp replicas counts for 1 / dp. Those of a span count when it has ended.
    """

    def __init__(self, trace: Trace | None) -> None:
        self._trace = trace
        self._watches: list[_Watch] = []
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def entered(self, replicas: int, now: float) -> None:
        """So many replicas there are from now on; nothing is in flight in any."""
        if replicas == len(self._watches):
            return
        for index, watch in enumerate(self._watches):
            self._idle_until(index, now, watch.cause or WEIGHTS)
            self._count(index)
        cause = None if self._watches else NO_WORK  # an engine starts without requests
        self._watches = [_Watch(now, cause) for _ in range(replicas)]

    def woke(self, now: float) -> None:
        """There was no request, and there is one."""
        for index, watch in enumerate(self._watches):
            if watch.cause == NO_WORK:
                self._idle_until(index, now, NO_WORK)
                watch.cause = None

    def waits(self, replica: int, cause: str, now: float) -> None:
        """All was sent that could be, and nothing is in flight in a replica."""
        watch = self._watches[replica]
        if watch.cause != cause:
            self._idle_until(replica, now, cause if watch.cause is None else watch.cause)
            watch.cause = cause

    def sent(self, replica: int, now: float) -> None:
        """A step was sent to a replica that had none in flight."""
        watch = self._watches[replica]
        self._idle_until(replica, now, HOST if watch.cause is None else watch.cause)
        watch.cause = None

    def completed(self, replica: int, busy_s: float, now: float, cause: str, more: bool) -> None:
        """A step completed that kept its slowest rank busy for so long. If the rank waited before, it was for `cause`.
        `more`: others are in flight."""
        watch = self._watches[replica]
        late_s = watch.since_s + busy_s - now
        if late_s > 0 and watch.last is not None:
            # It began before the report of the one before was seen: that one had ended sooner than it seemed.
            start_s, end_s, why = watch.last
            watch.last = start_s, max(start_s, end_s - late_s), why
        self._idle_until(replica, max(watch.since_s, now - busy_s), cause)
        watch.since_s = now
        if not more:
            self._count(replica)

    def seconds(self) -> dict[str, float]:
        """By cause, since the start."""
        return dict(self._seconds)

    def _idle_until(self, replica: int, now: float, cause: str) -> None:
        watch = self._watches[replica]
        if now > watch.since_s:
            self._count(replica)
            watch.last = watch.since_s, now, cause
            watch.since_s = now

    def _count(self, replica: int) -> None:
        watch = self._watches[replica]
        if watch.last is None:
            return
        start_s, end_s, cause = watch.last
        watch.last = None
        if cause == NO_WORK or end_s <= start_s:
            return
        self._seconds[cause] += (end_s - start_s) / len(self._watches)
        if self._trace is not None:
            self._trace.idle(cause, replica, start_s, end_s)
