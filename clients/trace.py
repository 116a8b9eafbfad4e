"""The timeline of one run, read from the engine's Chrome trace (`--trace`). Called by `clients.report`.

Times are seconds from the trace's first event. A trace that was cut off, by a killed engine, is read up to the cut.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seesaw.clients.datasets import iter_items

MICROSECONDS = 1e6
QUANTITIES = ("bytes", "tokens", "sequences", "drain_s")  # of a span, which the report draws
EVENTS_KEY = '"traceEvents"'
HEAD_CHARS = 4096


@dataclass(frozen=True)
class Span:
    """Something that took time. `args` is what the engine says of it."""

    name: str
    start_s: float
    duration_s: float
    args: dict[str, Any]

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s


@dataclass(frozen=True)
class Series:
    """A quantity over time: it has `values[i]` from `times_s[i]` on."""

    times_s: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Timeline:
    """One run. Spans are in order of their start; `counters` are by the event's name and then its key."""

    phases: list[Span]
    transitions: list[Span]
    steps: list[Span]
    swaps: list[Span]
    idle: list[Span]  # of all replicas; named by cause
    counters: dict[str, dict[str, Series]]
    duration_s: float


def is_trace(path: Path) -> bool:
    """Whether a file begins as a trace; it need not end as one."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return EVENTS_KEY in file.read(HEAD_CHARS)


def read_trace(path: Path) -> Timeline:
    """Raises ValueError if it holds no event with a time."""
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(HEAD_CHARS)
        start = head.index("[", head.index(EVENTS_KEY))
        events = [event for event in iter_items(file, head[start:]) if "ts" in event]
    if not events:
        raise ValueError(f"{path} holds no events")
    origin_us = min(event["ts"] for event in events)
    spans: defaultdict[str, list[Span]] = defaultdict(list)
    counters: defaultdict[str, defaultdict[str, Series]] = defaultdict(lambda: defaultdict(Series))
    end_s = 0.0
    for event in sorted(events, key=lambda event: event["ts"]):
        start_s = (event["ts"] - origin_us) / MICROSECONDS
        duration_s = event.get("dur", 0.0) / MICROSECONDS
        end_s = max(end_s, start_s + duration_s)
        if event["ph"] == "X":
            spans[event.get("cat", "")].append(Span(event["name"], start_s, duration_s, _args(event)))
        elif event["ph"] == "C":
            for key, value in event["args"].items():
                counters[event["name"]][key].times_s.append(start_s)
                counters[event["name"]][key].values.append(float(value))
    return Timeline(
        phases=spans["phase"],
        transitions=spans["transition"],
        steps=spans["step"],
        swaps=spans["swap"],
        idle=spans["idle"],
        counters={name: dict(series) for name, series in counters.items()},
        duration_s=end_s,
    )


def _args(event: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError if what is drawn is no number."""
    args: dict[str, Any] = event.get("args", {})
    if not isinstance(args, dict):
        raise ValueError(f"{event['name']!r} has args that are no object")
    wanted = ("bytes",) if event.get("cat") == "swap" else ()
    for name in {*wanted, *(name for name in QUANTITIES if name in args)}:
        if not isinstance(args.get(name), int | float):
            raise ValueError(f"{event['name']!r} has a {name} that is no number")
    return args
