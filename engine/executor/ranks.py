"""The worker processes and the sockets to them. Used by `engine.executor.processes`.

Every worker is watched from the moment it is started; its end turns the report socket readable, so whoever
polls that socket hears of it at once.
"""

from __future__ import annotations

import atexit
import functools
import signal
import time
import weakref
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import NoReturn

import msgspec
import zmq

from seesaw.engine.executor.fork_server import fork_server, signal_fork_server, start_forked
from seesaw.engine.run_folder import make_run_dir, remove_run_dir
from seesaw.engine.supervision import ChildWatch, end_children
from seesaw.engine.values.errors import ConfigError, EngineDeadError, SeesawError
from seesaw.engine.wire.commands import Command, Failure, FromRank, RankReady, Report, Shutdown
from seesaw.engine.worker.spec import WorkerSpec
from seesaw.engine.worker.start import run_worker

DEATHS = "inproc://deaths"
GRACE_S = 3.0  # for workers to end by themselves
ROOT_CAUSE_WAIT_S = 1.0  # for the news that a worker was killed, behind those of peers that it made fail


class Ranks:
    """All workers of an engine. Commands reach a rank in the order sent; sending never blocks."""

    def __init__(self) -> None:
        self.run_dir = make_run_dir()
        # Also at the exit of a process that never calls `close`.
        self._remove_run_dir = weakref.finalize(self, remove_run_dir, self.run_dir)
        self._context = zmq.Context()
        self._reports = self._context.socket(zmq.PULL)
        self._commands: list[zmq.Socket[bytes]] = []
        self._processes: list[BaseProcess] = []
        self._watch: ChildWatch | None = None
        self._at_exit = functools.partial(end_children, self._processes, 0.0)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)
        self._death: SeesawError | None = None
        self._closed = False

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Readable when `receive` has something to give or to raise."""
        return self._reports

    def start(self, specs: Sequence[WorkerSpec]) -> None:
        """Start a process for each rank, in rank order."""
        # High-water marks are off: what is queued is bounded by the commands that the scheduler has in flight.
        self._reports.set(zmq.RCVHWM, 0)
        self._reports.bind(specs[0].reports_address)
        self._reports.bind(DEATHS)
        context = fork_server()
        # Before multiprocessing joins them, which waits for ever in a process that ends without `close`.
        atexit.register(self._at_exit)
        for spec in specs:
            commands = self._context.socket(zmq.PUSH)
            commands.set(zmq.SNDHWM, 0)
            commands.set(zmq.RECONNECT_IVL, 10)
            # The worker binds: a socket that connects keeps a queue, so sending to a dead worker does not block.
            commands.connect(spec.commands_address)
            self._commands.append(commands)
        for spec in specs:
            process = context.Process(target=run_worker, args=(spec,), name=f"worker-{spec.rank}", daemon=True)
            start_forked(process, spec.config.start_timeout_s)
            self._processes.append(process)
        self._watch = ChildWatch(self._processes, self._announce_death)

    def send(self, ranks: Iterable[int], command: Command) -> None:
        """Send a command to some ranks. Raises EngineDeadError once a rank is known to have failed."""
        if self._death is not None:
            raise self._death
        payload = self._encoder.encode(command)
        for rank in ranks:
            self._commands[rank].send(payload)

    def receive(self) -> list[Report | RankReady]:
        """What has arrived, in order per rank and thread. Raises EngineDeadError, or ConfigError if that is why."""
        if self._death is not None:
            raise self._death
        messages: list[Report | RankReady] = []
        failures: list[Failure] = []
        while self._reports.poll(0):
            message = self._decoder.decode(self._reports.recv())
            if isinstance(message, Failure):
                failures.append(message)
            else:
                messages.append(message)
        if failures:
            self.give_up(self._root_cause(failures))
        return messages

    def wait(self, timeout_s: float) -> list[Report | RankReady]:
        """As `receive`, after waiting for something to arrive."""
        self._reports.poll(int(max(0.0, timeout_s) * 1000))
        return self.receive()

    def give_up(self, error: SeesawError) -> NoReturn:
        """Count all ranks as dead of this error, and raise it: `close` will not wait for them."""
        self._death = error
        raise error

    def close(self, grace_s: float = GRACE_S) -> None:
        """End all workers and give back sockets and files. They have `grace_s` to end by themselves, unless one has
        failed. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._watch is not None:
            self._watch.stop()
        if self._death is None:
            self.send(range(len(self._processes)), Shutdown())
        else:
            grace_s = 0.0
        signal_fork_server(signal.SIGCONT)  # were it stopped, no end of a worker would be heard of
        end_children(self._processes, grace_s)
        atexit.unregister(self._at_exit)
        for process in self._processes:
            if not process.is_alive():  # `close` refuses one that the kernel has not let go yet
                process.close()
        self._context.destroy(linger=0)
        self._remove_run_dir()

    def _announce_death(self, rank: int) -> None:
        # In the watching thread: only it may not touch the process, whose exit code is read once, by the owner.
        with self._context.socket(zmq.PUSH) as socket:
            socket.connect(DEATHS)
            socket.send(self._encoder.encode(Failure(rank, "")))

    def _await_killed(self) -> tuple[int, int] | None:
        """A rank that was killed, and its exit code. None if all end by themselves, or time is over."""
        deadline = time.monotonic() + ROOT_CAUSE_WAIT_S
        while True:
            codes = [process.exitcode for process in self._processes]
            for rank, code in enumerate(codes):
                if code is not None and code < 0:
                    return rank, code
            running = [p.sentinel for p, code in zip(self._processes, codes, strict=True) if code is None]
            if not running or not wait(running, max(0.0, deadline - time.monotonic())):
                return None

    def _root_cause(self, failures: list[Failure]) -> SeesawError:
        """The failure behind the others: a killed worker makes its peers fail in mid-collective."""
        for failure in failures:
            if failure.is_config:
                return ConfigError(failure.message)
        killed = self._await_killed()
        if killed is not None:
            rank, code = killed
            return EngineDeadError(f"worker rank {rank} was killed by {signal.Signals(-code).name}")
        for failure in failures:
            if failure.message:
                return EngineDeadError(f"worker rank {failure.rank} failed: {failure.message}")
        rank = failures[0].rank
        return EngineDeadError(f"worker rank {rank} ended with exit code {self._processes[rank].exitcode}")
