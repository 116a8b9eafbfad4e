"""Watching processes: every child from the moment it is spawned, and every parent by its children.

A child follows its parent and nobody else: it is deaf to what a terminal, `timeout` or systemd sends to all processes
of a server at once, and the kernel ends it with its parent. Used by the executor (over its workers), the worker (over
the engine process) and whoever starts the engine.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures
from contextlib import suppress
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn, TypeVar

from seesaw.engine.awake import waits
from seesaw.engine.main_module import main_left_out
from seesaw.engine.printing import drain

T = TypeVar("T")

ASKED_S = 5.0  # for a process that was asked to end, before it is killed
KILLED_S = 60.0  # for the kernel to take back its memory: many GB take seconds
END = signal.SIGUSR1  # asks a child to end: nobody but its parent sends it

OTHERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what others may send to all processes of a server
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of prctl(2)
ORPHANS_S = 5.0  # for those of a child that ended to follow it, before they are killed
ORPHANS_POLL_S = 0.01

_imported_in = os.getpid()  # a process that was forked has this of its parent


def start_child(start: Callable[[], T], timeout_s: float = math.inf) -> T:
    """Have `start`, which starts processes that will call `follow_parent`, done by a thread that lasts as long as
    this process: the kernel takes the end of the thread that started a process for its parent's.

    What comes of `OTHERS` waits in those processes until they follow, and in this thread until they are started. Raises
    TimeoutError if that takes too long, as it does for a fork server that was stopped.
    """
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, OTHERS)
    try:
        return _Starter.of_this_process().do(start, timeout_s)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Starter:
    """The thread that starts processes, one for each process that does so."""

    _lock = threading.Lock()
    _latest: _Starter | None = None

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._tasks: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="starter", daemon=True).start()

    @classmethod
    def of_this_process(cls) -> _Starter:
        with cls._lock:
            if cls._latest is None or cls._latest._pid != os.getpid():  # a fork has none of its parent's threads
                cls._latest = cls()
            return cls._latest

    def do(self, start: Callable[[], T], timeout_s: float) -> T:
        future: Future[T] = Future()
        self._tasks.put((start, future))
        if not any(wait_for_futures([future], wait_s).done for wait_s in waits(timeout_s)):
            raise TimeoutError
        return future.result()

    def _run(self) -> None:
        while True:
            start, future = self._tasks.get()
            try:
                resource_tracker.ensure_running()  # starting it unblocks some signals
                signal.pthread_sigmask(signal.SIG_BLOCK, OTHERS)
                with main_left_out():
                    future.set_result(start())
            except BaseException as error:
                future.set_exception(error)
            del start, future  # not kept until the next one comes


def follow_parent(last_wish: Callable[[], None] | None = None) -> None:
    """For a child's main thread, once: from here on it ends with its parent, however that ended, and for no other
    signal of `OTHERS`. What it starts itself, such as a compiler, inherits the latter.

    The kernel kills it. If it has a `last_wish` (clean up what the parent could not), a thread sees to that instead,
    and the kernel only wakes it, should it be stopped; no exit handlers run.
    """
    for number in OTHERS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OTHERS)
    parent = parent_process()
    if parent is None:
        return
    end_with_kernel_parent(signal.SIGKILL if last_wish is None else signal.SIGCONT)
    started_by = parent.pid if _imported_in == os.getpid() else _imported_in  # the fork server, of what it forked
    if last_wish is None:
        if os.getppid() != started_by:  # it ended before the kernel was asked
            os._exit(1)
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        try:
            last_wish()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def end_with_kernel_parent(number: signal.Signals) -> None:
    """Have the kernel send this signal when the thread that started this process ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(number), 0, 0, 0)


def lead_group() -> None:
    """For a child's main thread, once: it and all that will be below it are a process group, which `end_group` ends."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # of a terminal that stops who prints and is not of its group
    os.setpgid(0, 0)


def adopt_orphans() -> None:
    """Make what is below a child that dies this process's own, to be waited for, and no longer init's."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_group(leader: int, grace_s: float) -> None:
    """Wait for all that a child which led its group, and has ended, left behind; after `grace_s`, kill it.

    They follow it by themselves, but the kernel takes its time: it has their memory to take back. Knows only of those
    that were adopted.
    """
    kill_s = time.monotonic() + grace_s
    while True:
        try:
            ended, _ = os.waitpid(-leader, os.WNOHANG)
        except ChildProcessError:
            return
        now_s = time.monotonic()
        if now_s >= kill_s + KILLED_S:
            return
        if now_s >= kill_s:
            with suppress(ProcessLookupError):
                os.killpg(leader, signal.SIGKILL)
        if not ended:
            time.sleep(ORPHANS_POLL_S)


def exit_now(code: int) -> NoReturn:
    """End this process, which has cleaned up, without the interpreter's teardown: that of torch takes half a second."""
    try:
        logging.shutdown()
        drain()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # whoever reads them may be gone
        os._exit(code)


class ChildWatch:
    """Calls `on_death(index)` from a thread of its own as soon as one of the children ends; once each.

    A watched process must not be closed before `stop`.
    """

    def __init__(self, children: Sequence[BaseProcess], on_death: Callable[[int], None]) -> None:
        self._by_sentinel = {child.sentinel: index for index, child in enumerate(children)}
        self._on_death = on_death
        self._stop_read, self._stop_write = os.pipe()
        self._thread = threading.Thread(target=self._watch, name="child-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; no call of `on_death` comes after. Idempotent."""
        if self._thread.is_alive():
            os.write(self._stop_write, b"x")
            self._thread.join()
        for fd in (self._stop_read, self._stop_write):
            if fd >= 0:
                os.close(fd)
        self._stop_read = self._stop_write = -1

    def _watch(self) -> None:
        waiting = dict(self._by_sentinel)
        while waiting:
            ready = wait([*waiting, self._stop_read])
            if self._stop_read in ready:
                return
            for sentinel in ready:
                assert isinstance(sentinel, int)
                self._on_death(waiting.pop(sentinel))


def end_children(children: Sequence[BaseProcess], grace_s: float, asked_s: float = 0.0) -> None:
    """Wait `grace_s` for all to end by themselves, ask the others to and wait `asked_s`, then kill.

    One that is stopped goes on, to do so. All have ended on return, but for one that the kernel does not let go within
    KILLED_S.
    """
    _signal(children, signal.SIGCONT)
    wait_all(children, grace_s)
    if asked_s:
        _signal(children, END)
        wait_all(children, asked_s)
    _signal(children, signal.SIGKILL)
    wait_all(children, KILLED_S)


def wait_all(children: Sequence[BaseProcess], timeout_s: float) -> None:
    """Wait until all have ended, or the time is over."""
    deadline = time.monotonic() + timeout_s
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))


def _signal(children: Sequence[BaseProcess], number: signal.Signals) -> None:
    """To those that have not ended."""
    for child in children:
        if child.is_alive():
            assert child.pid is not None
            with suppress(ProcessLookupError):  # the fork server has reaped it, and not said so yet
                os.kill(child.pid, number)
