"""How children are started and ended, mostly without any."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from signal import SIGCONT, SIGKILL
from types import SimpleNamespace

import psutil
import pytest
from soak_server import still_running

from seesaw.engine import supervision
from seesaw.engine.executor.fork_server import fork_server
from seesaw.engine.executor.ranks import Ranks
from seesaw.engine.process import EngineProcess
from seesaw.engine.supervision import END, KILLED_S, OTHERS, end_children, start_child
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.commands import Failure
from tests.patience import PATIENCE_S


class Child:
    """Ends `needs_s` after a signal that it heeds, on a clock that only `join` moves."""

    clock_s = 0.0
    latest = 0

    def __init__(self, heeds: signal.Signals, needs_s: float) -> None:
        Child.latest += 1
        self.pid = Child.latest
        self.heeds, self.needs_s = heeds, needs_s
        self.ends_s = float("inf")
        self.heard: list[signal.Signals] = []
        self.is_closed = False

    def hear(self, number: signal.Signals) -> None:
        self.heard.append(number)
        if number == self.heeds:
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
    monkeypatch.setattr(
        supervision, "_signal", lambda children, number: [child.hear(number) for child in children if child.is_alive()]
    )


@pytest.mark.usefixtures("clock")
def test_a_killed_child_has_the_time_that_freeing_its_memory_takes() -> None:
    woken, asked, stubborn = Child(SIGCONT, 0.5), Child(END, 0.1), Child(SIGKILL, 30.0)
    end_children([woken, asked, stubborn], grace_s=1.0, asked_s=1.0)  # type: ignore[list-item]
    assert (woken.heard, asked.heard) == ([SIGCONT], [SIGCONT, END])
    assert stubborn.heard == [SIGCONT, END, SIGKILL]
    assert not any(child.is_alive() for child in (woken, asked, stubborn))


@pytest.mark.usefixtures("clock")
def test_a_child_that_the_kernel_holds_does_not_hide_why_the_engine_ends() -> None:
    ranks = Ranks()
    ended, held = Child(SIGKILL, 0.1), Child(SIGKILL, KILLED_S + 1.0)
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


def is_deaf(pid: int | None) -> bool:
    """Whether all that others send to every process of a server is blocked or ignored."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    deaf = int(status["SigBlk"], 16) | int(status["SigIgn"], 16)
    return all(deaf & 1 << (number - 1) for number in OTHERS)


def test_children_are_deaf_from_their_first_moment_and_their_parent_is_not() -> None:
    with start_child(lambda: subprocess.Popen(["cat"], stdin=subprocess.PIPE)) as child:
        assert is_deaf(child.pid)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(OTHERS)


@pytest.mark.processes
def test_the_engine_is_deaf() -> None:
    handle = EngineProcess.start(EngineConfig(executor="simulated"))
    try:
        assert is_deaf(handle.process.pid)  # it may have come to ignore them already
    finally:
        handle.kill()


@pytest.mark.processes
def test_what_the_fork_server_forks_is_deaf() -> None:
    child = fork_server().Process(target=signal.pause)
    child.start()
    try:
        assert is_deaf(child.pid) and is_deaf(psutil.Process(child.pid).ppid())
    finally:
        child.kill()
        child.join()


# A parent whose children follow it: one stopped, one busy, and one with a last wish that is stopped, too. It is killed
# once they have said that they are there. None of its threads that started them is left then.
FAMILY = """
import os, signal, sys, threading, time
from seesaw.engine.executor.fork_server import fork_server
from seesaw.engine.supervision import follow_parent, start_child

def follow(wish, is_stopped):
    follow_parent((lambda: open(wish, "w").close()) if wish else None)
    print(os.getpid(), flush=True)
    if is_stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    while True:
        pass

def start():
    context = fork_server()
    for arguments in (("", True), ("", False)):
        start_child(context.Process(target=follow, args=arguments, daemon=True).start)
    import multiprocessing
    spawned = multiprocessing.get_context("spawn").Process(target=follow, args=(sys.argv[1], True))
    start_child(spawned.start)
    print(os.getpid(), flush=True)

def main():
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    signal.pause()
"""


@pytest.mark.processes
def test_the_kernel_ends_children_with_their_parent_also_stopped_ones(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(FAMILY)
    # As a module: children import none that is the main one.
    command = [sys.executable, "-c", "import family; family.main()", str(tmp_path / "wish")]
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parents[2]}{os.pathsep}{tmp_path}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = {int(parent.stdout.readline()) for _ in range(4)}
        family = psutil.Process(parent.pid).children(recursive=True)
        assert pids <= {parent.pid, *(process.pid for process in family)}
        parent.kill()
        assert still_running(family, PATIENCE_S) == {}
    assert (tmp_path / "wish").exists()


# A child that leads a group starts two that do not follow it, one of them stopped, and is killed.
ORPHANS = """
import os, signal, subprocess
from seesaw.engine.supervision import adopt_orphans, end_group, lead_group

adopt_orphans()
read, write = os.pipe()
child = os.fork()
if not child:
    lead_group()
    orphans = [subprocess.Popen(["sleep", "1000"]).pid for _ in range(2)]
    os.kill(orphans[0], signal.SIGSTOP)
    os.write(write, repr(orphans).encode())
    signal.pause()
orphans = eval(os.read(read, 100))
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
end_group(child, 0.0)
assert not any(os.path.exists(f"/proc/{pid}") for pid in orphans)
end_group(child, 0.0)
"""


@pytest.mark.processes
def test_what_a_child_leaves_behind_is_ended_and_reaped() -> None:
    subprocess.run([sys.executable, "-c", ORPHANS], check=True, timeout=PATIENCE_S)


def test_the_last_words_are_not_lost_though_nothing_is_torn_down() -> None:
    script = (
        "import atexit, sys; from engine.supervision import exit_now; atexit.register(print, 'torn down'); "
        "print('last words'); exit_now(3)"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout) == (3, "last words\n")
