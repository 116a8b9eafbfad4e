"""When requests arrive."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from seesaw.clients.arrivals import RampUp, arrivals_s


def test_all_at_once() -> None:
    assert arrivals_s(3, math.inf) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0, math.inf])
def test_the_last_comes_at_num_over_rate(burstiness: float) -> None:
    times_s = arrivals_s(200, 4.0, burstiness, seed=3)
    assert times_s[-1] == pytest.approx(50.0)
    assert times_s == sorted(times_s)
    assert times_s[0] > 0


def test_burstiness_shapes_the_intervals() -> None:
    def variation(burstiness: float) -> float:
        intervals_s = np.diff(arrivals_s(20_000, 10.0, burstiness))
        return float(np.std(intervals_s) / np.mean(intervals_s))

    assert variation(1.0) == pytest.approx(1.0, rel=0.05)  # a gamma's is 1/sqrt(shape)
    assert variation(0.25) == pytest.approx(2.0, rel=0.05)
    assert variation(math.inf) == pytest.approx(0.0, abs=1e-6)


def test_the_seed_decides() -> None:
    assert arrivals_s(10, 1.0, seed=1) == arrivals_s(10, 1.0, seed=1) != arrivals_s(10, 1.0, seed=2)


def test_ramps() -> None:
    linear = arrivals_s(5, math.inf, math.inf, RampUp("linear", 1.0, 5.0))
    assert [1 / (b - a) for a, b in pairwise([0.0, *linear])] == pytest.approx([1, 2, 3, 4, 5])
    exponential = arrivals_s(5, math.inf, math.inf, RampUp("exponential", 1.0, 16.0))
    assert [1 / (b - a) for a, b in pairwise([0.0, *exponential])] == pytest.approx([1, 2, 4, 8, 16])
