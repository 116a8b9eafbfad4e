"""The engine's process: starts the executor, then turns the core's loop between the frontend and the ranks.

`EngineProcess` is the parent's handle on it, `run_engine` what runs inside. The frontend binds both sockets, the
engine connects. Its exit code is 0 if it was asked to end, 2 if the operator can fix what is wrong, else 1.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import msgspec
import zmq

from seesaw.engine.core import COMPILING_POLL_MS, Core, describe
from seesaw.engine.executor import make_executor
from seesaw.engine.executor.base import Executor
from seesaw.engine.heap import tame_collector
from seesaw.engine.logs import start_log
from seesaw.engine.printing import print_in_background
from seesaw.engine.run_folder import make_run_dir, remove_run_dir
from seesaw.engine.supervision import (
    ASKED_S,
    END,
    ORPHANS_S,
    end_children,
    end_group,
    exit_now,
    follow_parent,
    lead_group,
    start_child,
)
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError, QueueFullError, RequestError, SeesawError
from seesaw.engine.wire.messages import (
    Abort,
    Add,
    Dead,
    FromEngine,
    Ping,
    Pong,
    Progress,
    Ready,
    Refused,
    ResetPrefixCache,
    Starting,
    Stats,
    Stop,
    ToEngine,
)

logger = logging.getLogger(__name__)

STARTING_INTERVAL_S = 1.0
STATS_INTERVAL_S = 0.25
LOG_INTERVAL_S = 10.0
LAST_WORDS_MS = 1000
POLL_MS = 1000  # an upper bound only: sockets wake the loop
# More wait for the next one: running sequences must not. Of sequences, those that come and those that are given up.
MESSAGES_PER_TURN, SEQUENCES_PER_TURN = 256, 256


class EngineProcess:
    """A running engine process, seen from its parent. The parent watches `process.sentinel`."""

    def __init__(self, process: BaseProcess, run_dir: Path) -> None:
        self.process = process
        self._run_dir = run_dir

    @classmethod
    def start(cls, config: EngineConfig, log_level: str = "INFO") -> EngineProcess:
        """Spawn the process; it reports on the sockets when it is ready, or why it cannot be."""
        run_dir = make_run_dir()
        context = multiprocessing.get_context("spawn")
        # Not daemonic: it has children of its own.
        process = context.Process(
            target=run_engine, args=(config, str(run_dir), log_level), name="seesaw-engine", daemon=False
        )
        try:
            start_child(process.start)
        except BaseException:
            remove_run_dir(run_dir)
            raise
        return cls(process, run_dir)

    @property
    def send_address(self) -> str:
        """Where the frontend binds a PUSH socket for `ToEngine` messages."""
        return to_engine_address(self._run_dir)

    @property
    def receive_address(self) -> str:
        """Where the frontend binds a PULL socket for `FromEngine` messages."""
        return from_engine_address(self._run_dir)

    def close(self, timeout_s: float = 10.0) -> int | None:
        """Wait for the process to end (send Stop first), then make it, and wait for all that was below it. Returns its
        exit code. Idempotent."""
        end_children([self.process], timeout_s, ASKED_S)
        assert self.process.pid is not None
        end_group(self.process.pid, ORPHANS_S)
        remove_run_dir(self._run_dir)
        return self.process.exitcode

    def kill(self) -> None:
        """End the process at once; the kernel ends all others with it. Idempotent."""
        end_children([self.process], 0.0, 0.0)
        remove_run_dir(self._run_dir)


def to_engine_address(run_dir: Path) -> str:
    return f"ipc://{run_dir}/to_engine"


def from_engine_address(run_dir: Path) -> str:
    return f"ipc://{run_dir}/from_engine"


class _Frontend:
    """The engine's end of the sockets."""

    def __init__(self, run_dir: Path) -> None:
        self._context = zmq.Context()
        self.inbox = self._context.socket(zmq.PULL)
        self._outbox = self._context.socket(zmq.PUSH)
        for socket in (self.inbox, self._outbox):
            socket.set_hwm(0)  # the frontend bounds what it sends before it is handled
        self.inbox.connect(to_engine_address(run_dir))
        self._address = from_engine_address(run_dir)
        self._outbox.connect(self._address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)

    def send(self, message: FromEngine) -> None:
        self._outbox.send(self._encoder.encode(message))

    def receive(self) -> ToEngine | None:
        """The next message if one is here."""
        try:
            return self._decoder.decode(self.inbox.recv(zmq.NOBLOCK))
        except zmq.Again:
            return None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Say every moment that this process runs, whatever is being waited for in here."""
        done = threading.Event()

        def say() -> None:
            with self._context.socket(zmq.PUSH) as socket:  # its own: sockets belong to one thread
                socket.linger = 0
                socket.connect(self._address)
                while not done.wait(STARTING_INTERVAL_S):
                    socket.send(msgspec.msgpack.encode(Starting()))

        thread = threading.Thread(target=say, name="starting", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def close(self) -> None:
        self._context.destroy(linger=LAST_WORDS_MS)


def run_engine(config: EngineConfig, run_dir: str, log_level: str = "INFO") -> None:
    """The process's main function."""
    signal.signal(END, _raise_exit)
    lead_group()
    follow_parent(lambda: remove_run_dir(Path(run_dir)))
    print_in_background()
    start_log("%(asctime)s %(levelname)s engine: %(message)s", log_level)
    tempfile.tempdir = run_dir  # what is made in here goes with it, should this process be killed
    code = 0
    with closing(_Frontend(Path(run_dir))) as frontend, ExitStack() as stack:
        try:
            _serve(config, frontend, stack)
        except SeesawError as error:
            is_config = isinstance(error, ConfigError)
            code = 2 if is_config else 1
            frontend.send(Dead(str(error), is_config))
        except Exception as error:
            logger.exception("the engine failed")
            code = 1
            frontend.send(Dead(f"the engine failed: {type(error).__name__}: {error}"))
    signal.signal(END, signal.SIG_IGN)  # it is ending: nothing is left to interrupt
    exit_now(code)


def _raise_exit(signum: int, frame: FrameType | None) -> None:
    signal.signal(END, signal.SIG_IGN)  # once is enough: a second one would interrupt the cleaning up
    raise SystemExit(0)


def _serve(config: EngineConfig, frontend: _Frontend, stack: ExitStack) -> None:
    """Until Stop. The executor is closed with the stack: after the last words, since ending workers takes seconds."""
    with frontend.starting():
        executor = make_executor(config, lambda line: frontend.send(Progress(line)), instant=True)
        stack.callback(executor.close)
        core = stack.enter_context(closing(Core(config, executor)))
        tame_collector()
    frontend.send(Ready(describe(config, executor)))
    _Loop(core, executor, frontend).run()


class _Loop:
    """Receive, turn, send; asleep while there is nothing to do. Every message is answered by a turn of this loop,
    so a Pong proves that it turns."""

    def __init__(self, core: Core, executor: Executor, frontend: _Frontend) -> None:
        self._core = core
        self._frontend = frontend
        self._poller = zmq.Poller()
        self._poller.register(frontend.inbox, zmq.POLLIN)
        handle = executor.wait_handle()
        self._is_virtual = handle is None
        if handle is not None:
            self._poller.register(handle, zmq.POLLIN)
        self._stats_sent_s = 0.0
        self._num_handled = 0  # messages
        self._log = _ProgressLog()

    def run(self) -> None:
        """Until Stop."""
        while True:
            busy = self._is_virtual and not self._core.is_idle
            self._poller.poll(0 if busy else COMPILING_POLL_MS if self._core.is_compiling else POLL_MS)
            num_told, num_sequences = self._num_handled, 0
            while self._num_handled < num_told + MESSAGES_PER_TURN and num_sequences < SEQUENCES_PER_TURN:
                message = self._frontend.receive()
                if message is None:
                    break
                if isinstance(message, Stop):
                    return
                num_sequences += self._handle(message)
                self._num_handled += 1
            self._log.heard(self._core)
            was_idle = self._core.is_idle
            outputs = self._core.turn()
            for id, error in self._core.take_refused():
                self._refuse(id, error)
            now = time.monotonic()
            due = now - self._stats_sent_s >= STATS_INTERVAL_S
            if outputs or due or self._core.is_idle != was_idle or self._num_handled != num_told:
                stats = self._core.stats() if due or self._core.is_idle else None
                if stats is not None:
                    self._stats_sent_s = now
                handled = self._num_handled if self._num_handled != num_told else 0
                self._frontend.send(msgspec.structs.replace(outputs, stats=stats, handled=handled))

    def _handle(self, message: Add | Abort | Ping | ResetPrefixCache) -> int:
        """Returns of how many sequences it was."""
        match message:
            case Add():
                self._add(message)
                return message.sampling.n
            case Abort(id=id, index=index):
                return self._core.abort(id, index)
            case Ping(nonce=nonce):
                self._frontend.send(Pong(nonce, self._core.stats()))
            case ResetPrefixCache():
                self._core.reset_prefix_cache()
        return 0

    def _add(self, request: Add) -> None:
        try:
            self._core.add(request)
        except (RequestError, QueueFullError) as error:
            self._refuse(request.id, error)

    def _refuse(self, id: str, error: RequestError | QueueFullError) -> None:
        param = error.param if isinstance(error, RequestError) else None
        self._frontend.send(Refused(id, str(error), param, queue_full=isinstance(error, QueueFullError)))


class _ProgressLog:
    """A line for the operator every few seconds, while there is something to do."""

    def __init__(self) -> None:
        self._last = Stats()
        self._last_s = 0.0

    def heard(self, core: Core) -> None:
        """One turn of the loop."""
        now = time.monotonic()
        elapsed_s = now - self._last_s
        if core.is_idle:
            self._last_s = 0.0
        elif not self._last_s:
            self._last, self._last_s = core.stats(), now
        elif elapsed_s >= LOG_INTERVAL_S:
            last, stats = self._last, core.stats()
            queries = stats.prefix_cache_queries - last.prefix_cache_queries
            hits = sum(stats.prefix_cache_hits.values()) - sum(last.prefix_cache_hits.values())
            prompts = (stats.prompt_tokens - last.prompt_tokens) / elapsed_s
            outputs = (stats.generation_tokens - last.generation_tokens) / elapsed_s
            logger.info(
                f"{stats.phase} {stats.layout}: {prompts:.1f} prompt and {outputs:.1f} output tokens/s; "
                f"{stats.requests_running} running, {stats.requests_waiting} waiting, "
                f"{stats.requests_hosted} on the host; blocks used: device {stats.device_blocks_used} of "
                f"{stats.device_blocks_total}, host {stats.host_blocks_used} of {stats.host_blocks_total}"
                + (f"; {hits / queries:.1%} of prompts' tokens were cached" if queries else "")
            )
            self._last, self._last_s = stats, now
