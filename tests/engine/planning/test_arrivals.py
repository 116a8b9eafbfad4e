"""What is expected to come, from what came."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seesaw.engine.planning.arrivals import Arrivals, Came
from tests.engine.planning.situations import Fake


def after(*looks: tuple[float, int], until_s: float | None = None) -> Arrivals:
    """Looks at a time, by which so many requests of 100 tokens had come."""
    arrivals = Arrivals()
    for now_s, count in looks:
        arrivals.look(Fake(now_s=now_s, waiting=count, waiting_tokens=100 * count))
    if until_s is not None:
        arrivals.look(Fake(now_s=until_s, ended=looks[-1][1], prefilled_tokens=100 * looks[-1][1]))
    return arrivals


def test_what_came_between_two_looks() -> None:
    arrivals = Arrivals()
    some = Fake(now_s=1.0, waiting=2, waiting_tokens=300, running=1, prefilled_tokens=50)
    assert arrivals.look(some) == Came(1.0, 350, 3)
    assert arrivals.look(replace(some, now_s=2.0)) == Came(2.0, 0, 0)
    # One more has come, and one has ended.
    assert arrivals.look(replace(some, now_s=3.0, waiting=3, waiting_tokens=390, running=0, ended=1)).requests == 1


def test_the_first_opens_the_time_in_which_the_others_came() -> None:
    arrivals = after((10.0, 1), (11.0, 2), (12.0, 5))
    assert (arrivals.requests_per_s, arrivals.mean_tokens) == (2.0, 100.0)


def test_what_comes_at_once_is_no_rate() -> None:
    assert after((0.0, 100)).requests_per_s == 0
    assert after((0.0, 100), (20.0, 100)).requests_per_s == 0


BURSTS = [
    pytest.param([(0.0, 4), (0.3, 304)], id="right behind a few"),
    pytest.param([(0.0, 4), (5.0, 304)], id="some time behind a few"),
    pytest.param([(0.0, 1), (0.4, 101), (0.5, 201), (0.6, 301)], id="handed over in tenths of a second"),
    pytest.param([(0.0, 1), (1.9, 151), (2.1, 301)], id="in two moments"),
    pytest.param([(0.0, 300), (24.0, 360)], id="one behind another"),
    pytest.param([(0.0, 4), (0.3, 304), (24.0, 364)], id="two behind a few"),
]


@pytest.mark.parametrize("looks", BURSTS)
def test_a_burst_is_no_stream_whatever_came_before(looks: list[tuple[float, int]]) -> None:
    """It never counts for more than a few in a moment or two, where all of it was some hundred a second."""
    last_s, came = looks[-1]
    assert after(*looks).requests_per_s <= 3.0
    for later_s in (0.5, 1.0, 2.0, 5.0, 20.0):
        assert after(*looks, until_s=last_s + later_s).requests_per_s <= 3.0
    assert not after(*looks).explain(came)


def test_a_stream_is_known_within_seconds_whatever_its_rate() -> None:
    for per_s in (0.4, 1.0, 5.0, 40.0):
        stream = [(count / per_s, count + 1) for count in range(int(10 * per_s) + 1)]
        assert after(*stream).requests_per_s == pytest.approx(per_s)
    # Requests that come by accident, as these do, twice as many in some seconds as in others.
    uneven = [(second + part / 10, 0) for second in range(12) for part in range(4 + 4 * (second % 2))]
    looks = [(at_s, count + 1) for count, (at_s, _) in enumerate(uneven)]
    assert after(*looks).requests_per_s == pytest.approx(6.0, rel=0.1)


def test_a_burst_in_a_stream_changes_little() -> None:
    stream = [(count / 4, count + 1) for count in range(80)]
    crowd = [(at_s, count + (300 if at_s >= 15.0 else 0)) for at_s, count in stream]
    assert 3.5 < after(*crowd).requests_per_s < 5.5


def test_a_long_silence_ends_it() -> None:
    steady = [(float(second), second) for second in range(1, 21)]
    assert after(*steady).requests_per_s == pytest.approx(1.0)
    assert after(*steady, until_s=22.0).requests_per_s == pytest.approx(19 / 21)  # that may happen
    assert after(*steady, until_s=30.0).requests_per_s == pytest.approx(0.3)
    assert after(*steady, until_s=100.0).requests_per_s == 0


def test_they_explain_as_many_as_came_of_late() -> None:
    arrivals = after(*[(float(second), second) for second in range(1, 21)])
    assert arrivals.explain(29) and not arrivals.explain(31)
    assert not after((0.0, 100)).explain(0)
