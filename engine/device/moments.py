"""Moments on a rank's device, between which time is taken: events on CUDA, the host's clock on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

Moment = torch.cuda.Event | float  # on the CPU, of `time.perf_counter`


def moment(device: torch.device) -> Moment:
    """When all that was launched before is done: on CUDA that may be yet to come."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True, blocking=True)
    event.record()
    return event


def elapsed_s(start: Moment, end: Moment) -> float:
    """Seconds between two moments of one device that have come."""
    if isinstance(start, float) or isinstance(end, float):
        assert isinstance(start, float) and isinstance(end, float), "a moment of the host and one of a device"
        return end - start
    return start.elapsed_time(end) / 1000


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """What some work takes on a device; waits for it."""
    start = moment(device)
    work()
    end = moment(device)
    if not isinstance(end, float):
        end.synchronize()
    return elapsed_s(start, end)
