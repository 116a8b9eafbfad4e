"""When requests arrive: offsets in seconds from the start of a load test. Called by `clients.load_test`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

RampStrategy = Literal["linear", "exponential"]


@dataclass(frozen=True)
class RampUp:
    """A rate that grows from the first request to the last."""

    strategy: RampStrategy
    start_rps: float
    end_rps: float

    def rates(self, num: int) -> np.ndarray:
        """Requests per second at each of `num` requests."""
        progress = np.arange(num) / max(num - 1, 1)
        if self.strategy == "linear":
            return self.start_rps + (self.end_rps - self.start_rps) * progress
        return self.start_rps * (self.end_rps / self.start_rps) ** progress


def arrivals_s(
    num: int, rate: float, burstiness: float = 1.0, ramp_up: RampUp | None = None, seed: int = 0
) -> list[float]:
    """Arrival times of `num` requests, ascending.

    Intervals follow a gamma distribution of shape `burstiness`: 1 is a Poisson process, less is burstier, inf
    is a fixed interval. At a fixed rate they are scaled so that the last request comes at exactly `num / rate`:
    seeds then differ in pattern, not in load. All arrive at once if `rate` is inf.
    """
    if math.isinf(rate) and ramp_up is None:
        return [0.0] * num
    means_s = 1.0 / (np.full(num, rate) if ramp_up is None else ramp_up.rates(num))
    if math.isinf(burstiness):
        intervals_s = means_s
    else:
        intervals_s = np.random.default_rng(seed).gamma(burstiness, means_s / burstiness)
    times_s = np.cumsum(intervals_s)
    if ramp_up is None and times_s[-1] > 0:
        times_s *= num / rate / times_s[-1]
    return [float(time_s) for time_s in times_s]
