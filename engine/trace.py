"""A timeline of one engine in Chrome's trace format, for Perfetto and `seesaw bench report`: `--trace FILE`.

`Core` makes it and samples the counters; the scheduler's parts add phases, transitions, steps and swaps. All times
are on the executor's clock. After every write the file is a whole JSON document, so the trace of an engine that was
killed still opens; it lacks at most the last `FLUSH_INTERVAL_S`.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.wire.messages import Speeds, Stats

logger = logging.getLogger(__name__)

SAMPLE_INTERVAL_S = 0.01
FLUSH_INTERVAL_S = 1.0
FLUSH_EVENTS = 512
LEAST_IDLE_S = 1e-4  # shorter ones are only counted, in `Stats`

HEAD, TAIL = b'{"traceEvents": [\n', b"\n]}\n"


class Track(NamedTuple):
    """A row of the timeline. The spans of a row do not overlap."""

    pid: int
    tid: int


PHASES, TRANSITIONS = Track(0, 0), Track(0, 1)
STEPS, SWAPS, IDLE = 1, 2, 3  # pids: one row for each replica; swaps one for each direction


class Trace:
    """Streams events to a file. Owned by the core's thread; keeps at most `FLUSH_EVENTS` of them in memory."""

    def __init__(self, path: Path, plan: Plan, now: float) -> None:
        """Raises ConfigError if the file cannot be written."""
        try:
            self._file = path.open("wb", buffering=0)
            self._file.write(HEAD)
        except OSError as error:
            raise ConfigError(f"cannot write the trace {path} ({error.strerror}): choose another --trace") from None
        self._end_bytes = len(HEAD)  # of the events written so far
        self._pending: list[str] = []
        self._origin_s = self._flushed_s = now
        self._sampled_s = -math.inf
        self._phase: tuple[str, Layout, float] | None = None  # the open one and its start
        self._busy_until_s: dict[Track, float] = {}
        self._counters: dict[str, dict[str, int]] = {}
        self._name_tracks(max(layout.dp for layout in plan.layouts), now)

    # --- what happens

    def measured(self, speeds: Speeds, now: float) -> None:
        """The times that the engine starts with."""
        marker = {"ph": "i", "s": "g", "name": "measured", **PHASES._asdict(), "ts": self._micros(now)}
        self._add(marker | {"args": msgspec.to_builtins(speeds, str_keys=True)}, now)

    def enter(self, phase: str, layout: Layout, now: float) -> None:
        """A phase begins; it lasts until a transition starts."""
        self._phase = (phase, layout, now)

    def transition(self, change: str, started_s: float, now: float, **parts_s: float) -> None:
        """A change of layout, written as `P4->T4`, completed; `parts_s` add up to its time."""
        if self._phase is not None:
            self._add(self._open_phase(started_s), now)
            self._phase = None
        rounded = {part: round(seconds, 6) for part, seconds in parts_s.items()}
        self._add(self._span(TRANSITIONS, "transition", change, started_s, now, rounded), now)

    def step(self, kind: str, replica: int, sent_s: float, busy_s: float, now: float, **args: int | str) -> None:
        """A forward completed on all ranks; it kept the slowest busy for `busy_s`."""
        self._work(Track(STEPS, replica), "step", kind, sent_s, busy_s, now, args)

    def swap(self, to_host: bool, replica: int, sent_s: float, busy_s: float, now: float, **args: int | str) -> None:
        """A copy completed on all ranks; it kept the slowest busy for `busy_s`."""
        name, row = ("swap out", 0) if to_host else ("swap in", 1)
        self._work(Track(SWAPS, 2 * replica + row), "swap", name, sent_s, busy_s, now, args)

    def idle(self, cause: str, replica: int, started_s: float, ended_s: float) -> None:
        """A replica computed nothing, though there was work."""
        if ended_s - started_s >= LEAST_IDLE_S:
            self._add(self._span(Track(IDLE, replica), "idle", cause, started_s, ended_s, {}), ended_s)

    def is_due(self, now: float) -> bool:
        """Whether it is time for another sample."""
        return now - self._sampled_s >= SAMPLE_INTERVAL_S

    def sample(self, stats: Stats, now: float) -> None:
        """Note the counters that changed."""
        self._sampled_s = now
        running, waiting, hosted = stats.requests_running, stats.requests_waiting, stats.requests_hosted
        self._count("sequences", now, running=running, waiting=waiting, hosted=hosted)
        self._count("device_blocks", now, used=stats.device_blocks_used, cached=stats.device_blocks_cached)
        self._count("host_blocks", now, used=stats.host_blocks_used, cached=stats.host_blocks_cached)
        hits = stats.prefix_cache_hits
        self._count("prefix_hits", now, device=hits.get("device", 0), host=hits.get("host", 0))
        if now - self._flushed_s >= FLUSH_INTERVAL_S:
            self.flush(now)

    def close(self, now: float) -> None:
        """Write what is left. Idempotent."""
        self.flush(now)
        self._file.close()

    # --- events

    def _work(
        self, track: Track, category: str, name: str, sent_s: float, busy_s: float, now: float, args: dict[str, Any]
    ) -> None:
        # Commands queue up on the ranks. One began when it was sent, when the one before it ended, or as long ago as
        # its slowest rank says: whichever came last.
        start_s = max(sent_s, self._busy_until_s.get(track, sent_s), now - busy_s if busy_s else sent_s)
        self._busy_until_s[track] = now
        self._add(self._span(track, category, name, start_s, now, args), now)

    def _open_phase(self, now: float) -> dict[str, Any]:
        assert self._phase is not None
        name, layout, since_s = self._phase
        return self._span(PHASES, "phase", name, since_s, now, {"layout": str(layout)})

    def _span(
        self, track: Track, category: str, name: str, start_s: float, end_s: float, args: dict[str, Any]
    ) -> dict[str, Any]:
        start, end = self._micros(start_s), self._micros(end_s)
        times = {"ts": start, "dur": round(end - start, 3)}
        return {"ph": "X", "cat": category, "name": name, **track._asdict(), **times, "args": args}

    def _count(self, name: str, now: float, **values: int) -> None:
        if self._counters.get(name) != values:
            self._counters[name] = values
            self._add({"ph": "C", "name": name, "pid": PHASES.pid, "ts": self._micros(now), "args": values}, now)

    def _name_tracks(self, replicas: int, now: float) -> None:
        names = {PHASES: "phase", TRANSITIONS: "transition"}
        for replica in range(replicas):
            names[Track(STEPS, replica)] = f"replica {replica}"
            names[Track(IDLE, replica)] = f"replica {replica} idle"
            names[Track(SWAPS, 2 * replica)] = f"replica {replica} out"
            names[Track(SWAPS, 2 * replica + 1)] = f"replica {replica} in"
        for pid, name in ((PHASES.pid, "engine"), (STEPS, "steps"), (SWAPS, "swaps"), (IDLE, "idle")):
            self._add({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}, now)
        for track, name in names.items():
            self._add({"ph": "M", "name": "thread_name", **track._asdict(), "args": {"name": name}}, now)

    def _micros(self, time_s: float) -> float:
        return round((time_s - self._origin_s) * 1e6, 3)

    # --- file

    def _add(self, event: dict[str, Any], now: float) -> None:
        self._pending.append(json.dumps(event))
        if len(self._pending) >= FLUSH_EVENTS:
            self.flush(now)

    def flush(self, now: float) -> None:
        """Write what is pending, and behind it what makes the file whole: the open phase up to now, and the brackets.
        The next flush writes over that ending."""
        events, self._pending = self._pending, []
        self._flushed_s = now
        if self._file.closed:
            return
        body = (",\n" if self._end_bytes > len(HEAD) and events else "") + ",\n".join(events)
        ending = ",\n" + json.dumps(self._open_phase(now)) if self._phase is not None else ""
        try:
            self._file.seek(self._end_bytes)
            self._file.write((body + ending).encode() + TAIL)  # one call: all of it, or nothing, survives a kill
            self._file.truncate()
        except OSError as error:
            logger.error(f"the trace ends here: {error}")
            self._file.close()
        self._end_bytes += len(body)
