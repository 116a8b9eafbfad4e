"""How children are ended, without any."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engine import supervision
from engine.errors import EngineDeadError
from engine.executor.ranks import Ranks
from engine.supervision import KILLED_S, end_children


class Child:
    """Ends `needs_s` after a signal that it heeds, on a clock that only `join` moves."""

    clock_s = 0.0

    def __init__(self, heeds: str, needs_s: float) -> None:
        self.heeds, self.needs_s = heeds, needs_s
        self.ends_s = float("inf")
        self.heard: list[str] = []
        self.is_closed = False

    def terminate(self) -> None:
        self._hear("terminate")

    def kill(self) -> None:
        self._hear("kill")

    def _hear(self, signal: str) -> None:
        self.heard.append(signal)
        if signal == self.heeds:
            self.ends_s = Child.clock_s + self.needs_s

    def is_alive(self) -> bool:
        return Child.clock_s < self.ends_s

    def join(self, timeout_s: float) -> None:
        Child.clock_s = max(Child.clock_s, min(Child.clock_s + timeout_s, self.ends_s))

    def close(self) -> None:
        if self.is_alive():
            raise ValueError("Cannot close a process while it is still running")
        self.is_closed = True


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Child, "clock_s", 0.0)
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: Child.clock_s))


def test_a_killed_child_has_the_time_that_freeing_its_memory_takes() -> None:
    quick, stubborn = Child("terminate", 0.1), Child("kill", 30.0)
    end_children([quick, stubborn], grace_s=1.0)  # type: ignore[list-item]
    assert (quick.heard, stubborn.heard) == (["terminate"], ["terminate", "kill"])
    assert not quick.is_alive() and not stubborn.is_alive()


def test_a_child_that_the_kernel_holds_does_not_hide_why_the_engine_ends() -> None:
    ranks = Ranks()
    ended, held = Child("terminate", 0.1), Child("kill", KILLED_S + 1.0)
    ranks._processes = [ended, held]  # type: ignore[list-item]
    with pytest.raises(EngineDeadError, match="killed by SIGKILL"):
        try:
            ranks.give_up(EngineDeadError("worker rank 0 was killed by SIGKILL"))
        finally:
            ranks.close()
    assert ended.is_closed and not held.is_closed
    assert not ranks.run_dir.exists()
