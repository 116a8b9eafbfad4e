"""How children are started and ended, mostly without any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine import supervision
from engine.executor.ranks import Ranks, fork_server
from engine.process import EngineProcess
from engine.supervision import KILLED_S, deaf_children, end_children
from engine.values.config import EngineConfig
from engine.values.errors import EngineDeadError
from engine.wire.commands import Failure
from tests.patience import PATIENCE_S


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Child, "clock_s", 0.0)
    monkeypatch.setattr(supervision, "time", SimpleNamespace(monotonic=lambda: Child.clock_s))


@pytest.mark.usefixtures("clock")
def test_a_killed_child_has_the_time_that_freeing_its_memory_takes() -> None:
    quick, stubborn = Child("terminate", 0.1), Child("kill", 30.0)
    end_children([quick, stubborn], grace_s=1.0)  # type: ignore[list-item]
    assert (quick.heard, stubborn.heard) == (["terminate"], ["terminate", "kill"])
    assert not quick.is_alive() and not stubborn.is_alive()


@pytest.mark.usefixtures("clock")
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


class Killed:
    """A child that is known to have been killed once somebody has asked in vain."""

    def __init__(self) -> None:
        self.sentinel, self._running = os.pipe()
        self._is_known = False

    @property
    def exitcode(self) -> int | None:
        if self._is_known:
            return -signal.SIGKILL
        self._is_known = True
        os.close(self._running)
        return None


def test_who_was_killed_is_the_reason_though_its_peers_end_is_known_first() -> None:
    ranks, killed = Ranks(), Killed()
    ranks._processes = [SimpleNamespace(exitcode=1), killed]  # type: ignore[list-item]
    try:
        error = ranks._root_cause([Failure(0, "RuntimeError: Connection closed by peer")])
        assert str(error) == "worker rank 1 was killed by SIGKILL"
    finally:
        os.close(killed.sentinel)
        ranks._processes = []
        ranks.close()


def is_ctrl_c_in(pid: int | None, *masks: str) -> bool:
    """Whether it is in one of a process's signal masks: `SigBlk` (blocked), `SigIgn` (ignored)."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return any(int(status[mask], 16) & 1 << (signal.SIGINT - 1) for mask in masks)


def test_children_are_deaf_from_their_first_moment() -> None:
    with deaf_children(), subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert is_ctrl_c_in(child.pid, "SigBlk")
    assert not is_ctrl_c_in(os.getpid(), "SigBlk", "SigIgn")


@pytest.mark.processes
def test_the_engine_is_deaf() -> None:
    handle = EngineProcess.start(EngineConfig(executor="simulated"))
    try:
        assert is_ctrl_c_in(handle.process.pid, "SigBlk", "SigIgn")  # it may have come to ignore it already
    finally:
        handle.close(0.0)


@pytest.mark.processes
def test_what_the_fork_server_forks_is_deaf() -> None:
    child = fork_server().Process(target=signal.pause)
    child.start()
    try:
        assert is_ctrl_c_in(child.pid, "SigBlk")
    finally:
        child.kill()
        child.join()


def _exit_with_preloaded() -> None:
    sys.exit(3 if "engine.worker.quick_exit" in sys.modules else 4)


@pytest.mark.processes
def test_the_fork_server_is_to_end_quickly_and_what_it_forks_is_not() -> None:
    child = fork_server().Process(target=_exit_with_preloaded)
    child.start()
    child.join(PATIENCE_S)
    assert child.exitcode == 3


def test_a_quick_exit_tears_nothing_down() -> None:
    script = "import atexit; atexit.register(print, 'torn down'); import engine.worker.quick_exit"
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_last_words_are_not_lost_though_nothing_is_torn_down() -> None:
    script = (
        "import atexit, sys; from engine.supervision import exit_now; atexit.register(print, 'torn down'); "
        "print('last words'); exit_now(3)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (3, "last words\n")
