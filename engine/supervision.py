"""Watching processes: every child from the moment it is spawned, and every parent by its children.

Used by the executor (over its workers), the worker (over the engine process) and whoever starts the engine.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn

TERMINATED_S = 5.0  # for a terminated process to end before it is killed
KILLED_S = 60.0  # for the kernel to take back its memory: many GB take seconds

LONGEST_SOCKET_PATH = 107  # bytes, of a Unix socket
LONGEST_BELOW_RUN_DIR = 45  # a nested run folder, or the fork server's, and a socket in it


def make_run_dir() -> Path:
    """A private folder (mode 0700) for an engine's sockets and rendezvous; whoever makes it removes it.

    It is in /tmp where TMPDIR is so deep that the sockets' paths would be too long.
    """
    deep = len(os.fsencode(tempfile.gettempdir())) + len("/seesaw-12345678") + LONGEST_BELOW_RUN_DIR
    return Path(tempfile.mkdtemp(prefix="seesaw-", dir="/tmp" if deep > LONGEST_SOCKET_PATH else None))


def exit_with_parent(last_wish: Callable[[], None] = lambda: None) -> None:
    """End this process at once when the one that started it ends, however it ended.

    `last_wish` runs before (clean up what the parent could not). No exit handlers run: a worker may be deep
    in a collective that will never complete.
    """
    parent = parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        try:
            last_wish()
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def exit_now(code: int) -> NoReturn:
    """End this process, which has cleaned up, without the interpreter's teardown: that of torch takes half a second."""
    try:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # whoever reads them may be gone
        os._exit(code)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Ctrl-C, which a terminal sends to the whole group, waits in the processes that are started in here until they
    call `ignore_ctrl_c`: importing what they run takes a while."""
    resource_tracker.ensure_running()  # starting it unblocks the signal again
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def ignore_ctrl_c() -> None:
    """For children, whose parent ends them when it comes. What they start, such as a compiler, may hear it again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


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


def end_children(children: Sequence[BaseProcess], grace_s: float) -> None:
    """Wait `grace_s` for all to end by themselves, then terminate, then kill.

    All have ended on return, but for one that the kernel does not let go within KILLED_S.
    """
    wait_all(children, grace_s)
    for child in alive(children):
        child.terminate()
    wait_all(children, TERMINATED_S)
    for child in alive(children):
        child.kill()
    wait_all(children, KILLED_S)


def alive(children: Sequence[BaseProcess]) -> list[BaseProcess]:
    """Those that have not ended."""
    return [child for child in children if child.is_alive()]


def wait_all(children: Sequence[BaseProcess], timeout_s: float) -> None:
    """Wait until all have ended, or the time is over."""
    deadline = time.monotonic() + timeout_s
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
