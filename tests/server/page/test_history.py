"""What the last minutes were, by snapshots that come at known times."""

from __future__ import annotations

import pytest

from seesaw.engine.wire.messages import Stats
from seesaw.server.page.history import MAX_TRANSITIONS, WINDOW_S, History


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    return History(clock)


def test_a_sample_is_what_grew_in_about_a_second(history: History, clock: Clock) -> None:
    assert not history.add(Stats("decode", "T2", prompt_tokens=50, phase_seconds={"decode": 3.0}))
    clock.now_s += 0.5
    assert not history.add(Stats("decode", "T2", prompt_tokens=60, phase_seconds={"decode": 3.5}))
    clock.now_s += 0.75
    late = Stats(
        *("prefill", "P2"),
        requests_running=3,
        requests_waiting=2,
        requests_hosted=1,
        prompt_tokens=250,  # 200 in the 1.25 s of the engine's clock
        generation_tokens=100,
        phase_seconds={"decode": 4.0, "prefill": 0.25},
    )
    assert history.add(late)
    samples = history.samples(0.0)
    assert (samples.at_s, samples.seconds, samples.layout) == ([1.25], [1.25], ["P2"])
    assert samples.phases == {"prefill": [0.2], "decode": [0.8], "tail": [0.0]}
    assert (samples.prompt_tokens_per_second, samples.generation_tokens_per_second) == ([160.0], [80.0])
    assert [samples.requests_running, samples.requests_waiting, samples.requests_hosted] == [[3], [2], [1]]


def test_rates_go_by_the_engines_clock(history: History, clock: Clock) -> None:
    """A snapshot is seen later than it was made, one more than another."""
    history.add(Stats("decode", "T2", phase_seconds={"decode": 1.0}))
    clock.now_s += 1.25
    history.add(Stats("decode", "T2", generation_tokens=100, phase_seconds={"decode": 2.0}))
    assert history.samples(0.0).generation_tokens_per_second == [100.0]


def test_a_clock_that_stands_still_is_in_the_phase_that_it_is_in(history: History, clock: Clock) -> None:
    for tokens in (0, 30):
        history.add(Stats("tail", "T4", generation_tokens=tokens))
        clock.now_s += 1
    samples = history.samples(0.0)
    assert (samples.phases["tail"], samples.generation_tokens_per_second) == ([1.0], [30.0])


def test_what_was_told_is_not_told_again(history: History, clock: Clock) -> None:
    told: list[float] = []
    after_s = 0.0
    for seconds in range(7):
        history.add(Stats("decode", "T2", phase_seconds={"decode": seconds / 3}))
        clock.now_s += 0.1
        if seconds % 3 == 2:
            told += history.samples(after_s).at_s
            after_s = history.now_s
        clock.now_s += 0.9 + 1 / 3
    told += history.samples(after_s).at_s
    assert told == history.samples(0.0).at_s and len(told) == len(set(told)) == 6


def test_transitions_with_their_parts(history: History, clock: Clock) -> None:
    history.add(Stats("decode", "T2"))
    clock.now_s += 0.25
    seconds = {"drain": 0.1, "evacuate": 0.0, "weights": 0.5}
    history.add(Stats("prefill", "P2", transitions={"T2->P2": 1}, transition_seconds=seconds))
    clock.now_s += 0.25
    both = {"T2->P2": 2, "P2->T2": 1}
    history.add(Stats("prefill", "P2", transitions=both, transition_seconds=seconds | {"drain": 0.5, "weights": 1.5}))
    first, second = history.changes(0.0)
    assert (first.at_s, first.changes, first.seconds) == (0.25, {"T2->P2": 1}, {"drain": 0.1, "weights": 0.5})
    assert (second.changes, second.seconds) == ({"T2->P2": 1, "P2->T2": 1}, {"drain": 0.4, "weights": 1.0})
    assert history.changes(0.25) == [second]


def test_another_engine_counts_from_zero(history: History, clock: Clock) -> None:
    for stats in (
        Stats("decode", "T2", generation_tokens=500, transitions={"a": 3}, phase_seconds={"decode": 90.0}),
        Stats("decode", "T2", generation_tokens=0, phase_seconds={"decode": 0.5}),
        Stats("decode", "T2", generation_tokens=10, phase_seconds={"decode": 1.5}),
    ):
        history.add(stats)
        clock.now_s += 1
    assert history.samples(0.0).generation_tokens_per_second == [10.0]
    assert history.changes(0.0) == []


def test_it_is_bounded(history: History, clock: Clock) -> None:
    for number in range(int(2 * WINDOW_S)):
        history.add(Stats("decode", "T2", transitions={"T2->P2": number}, phase_seconds={"decode": float(number)}))
        clock.now_s += 1
    assert len(history.samples(0.0).at_s) < WINDOW_S
    assert len(history.changes(0.0)) == MAX_TRANSITIONS
    clock.now_s += WINDOW_S
    assert history.samples(0.0).at_s == [] == history.changes(0.0)
