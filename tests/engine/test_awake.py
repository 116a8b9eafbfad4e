"""Time in which a process ran, on a clock of our own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from seesaw.engine import awake
from seesaw.engine.awake import GAP_S, SLICE_S, AwakeClock, waits


class Host:
    now_s = 1000.0


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(awake, "time", SimpleNamespace(monotonic=lambda: host.now_s))
    return host


def test_a_clock_that_is_looked_at_shows_the_time_but_for_what_stood_still(host: Host) -> None:
    clock = AwakeClock()
    began_s = clock.now()
    for _ in range(10):
        host.now_s += 0.5
        clock.now()
    assert clock.now() - began_s == 5.0
    host.now_s += 3600
    assert clock.now() - began_s == 5.0 + GAP_S


def test_waits_add_up_to_the_timeout_and_one_is_always_made(host: Host) -> None:
    waited = []
    for wait_s in waits(3.5):
        waited.append(wait_s)
        host.now_s += wait_s
    assert waited == [SLICE_S] * 3 + [0.5]
    assert list(waits(0.0)) == [0.0]


def test_a_host_that_stood_still_leaves_time_to_wait(host: Host) -> None:
    patience = waits(5.0)
    next(patience)
    host.now_s += 86400
    waited = []
    for wait_s in patience:
        waited.append(wait_s)
        host.now_s += wait_s
    assert waited == [SLICE_S] * 3
