"""Where workers are forked from: a process that has imported torch (once, seconds) and never touches CUDA.

It is ours alone. multiprocessing has one for the whole program, whose children would be of the program's fork server,
if that was first, or the program's children of ours, deaf to what ends them.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.popen_forkserver import Popen
from multiprocessing.process import BaseProcess, current_process
from pathlib import Path

from seesaw.engine.run_folder import keep_multiprocessing_in, make_run_dir, remove_run_dir
from seesaw.engine.supervision import start_child
from seesaw.engine.values.errors import ConfigError, EngineDeadError

PRELOADED = ["seesaw.engine.worker.fork_server", "torch", "seesaw.engine.worker.worker"]

_connect = forkserver.connect_to_new_process
_here = threading.local()  # other threads may start processes of the program's own meanwhile


class _Process(ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Popen:
        with _from_ours():
            return Popen(process_obj)


class _Context(ForkServerContext):
    Process = _Process


def fork_server() -> ForkServerContext:
    """A context whose processes are forked from it; it runs. Raises ConfigError where there may be none."""
    if current_process().daemon:
        raise ConfigError(
            "an engine starts processes, which a daemonic one may not: use concurrent.futures.ProcessPoolExecutor "
            "in place of multiprocessing.Pool, or daemon=False"
        )
    _keep_files_together(os.getpid())
    start_child(_server(os.getpid()).ensure_running)
    return _Context()


def start_forked(process: BaseProcess, timeout_s: float) -> None:
    """Have it forked. Raises EngineDeadError."""
    try:
        start_child(process.start, timeout_s)
    except TimeoutError:
        signal_fork_server(signal.SIGKILL)  # should it go on, it would fork for nobody
        raise EngineDeadError(
            f"the process that forks workers has done nothing for {timeout_s:g} s: "
            "look for what stopped it, or raise --start-timeout-s"
        ) from None
    except (EOFError, ConnectionError):
        raise EngineDeadError("the process that forks workers was killed while it forked one") from None


def signal_fork_server(number: signal.Signals) -> None:
    """If there is one."""
    pid = _server(os.getpid())._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


@functools.cache  # once a process: one that was forked has none of its parent's
def _server(pid: int) -> forkserver.ForkServer:
    server = forkserver.ForkServer()
    server.set_forkserver_preload(PRELOADED)
    return server


@functools.cache
def _keep_files_together(pid: int) -> None:
    folder = make_run_dir()
    atexit.register(_remove_own, folder, pid)
    keep_multiprocessing_in(folder)


def _remove_own(folder: Path, pid: int) -> None:
    if os.getpid() == pid:
        remove_run_dir(folder)


def _connect_to_new_process(fds: Sequence[int]) -> tuple[int, int]:
    server: forkserver.ForkServer | None = getattr(_here, "server", None)
    connected: tuple[int, int] = _connect(fds) if server is None else server.connect_to_new_process(fds)
    return connected


forkserver.connect_to_new_process = _connect_to_new_process


@contextmanager
def _from_ours() -> Iterator[None]:
    """Processes that this thread starts in the block by the method forkserver are of our fork server."""
    _here.server = _server(os.getpid())
    try:
        yield
    finally:
        _here.server = None
