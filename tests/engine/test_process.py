"""The engine process's main function, in this process."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
import zmq

from seesaw.engine import process
from seesaw.engine.core import Core
from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.process import (
    MESSAGES_PER_TURN,
    SEQUENCES_PER_TURN,
    _Frontend,
    _Loop,
    from_engine_address,
    run_engine,
    to_engine_address,
)
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import Abort, Add, Dead, FromEngine, Outputs, Ping, Pong, ResetPrefixCache, Stats, Stop
from tests.patience import PATIENCE_S


def test_its_last_words_come_before_the_workers_are_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending workers takes seconds, and clients wait for the words."""
    heard: list[FromEngine] = []

    class Dying(SimulatedExecutor):
        def collect(self) -> list[object]:  # type: ignore[override]
            raise EngineDeadError("a step took too long")

        def close(self) -> None:
            while inbox.poll(int(1000 * PATIENCE_S)):
                heard.append(msgspec.msgpack.decode(inbox.recv(), type=FromEngine))
                if isinstance(heard[-1], Dead):
                    return

    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(process, "make_executor", lambda config, say, instant: Dying(config, instant=instant))
    monkeypatch.setattr(process, "POLL_MS", 0)
    monkeypatch.setattr(process, "print_in_background", lambda: None)
    monkeypatch.setattr(process, "exit_now", sys.exit)
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        zmq.Context() as context,
        context.socket(zmq.PULL) as inbox,
    ):
        monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
        inbox.bind(from_engine_address(Path(folder)))
        with pytest.raises(SystemExit) as ended:
            run_engine(EngineConfig(executor="simulated", tokenizer="bytes"), folder)
    assert ended.value.code == 1
    assert heard[-1] == Dead("a step took too long")


@contextmanager
def looping(core: Core, executor: SimulatedExecutor) -> Iterator[tuple[_Loop, zmq.Socket[bytes], zmq.Socket[bytes]]]:
    """A loop and the frontend's ends of its sockets: the one to send by, and the one to receive by."""
    with (
        tempfile.TemporaryDirectory(prefix="t-") as folder,
        zmq.Context() as context,
        context.socket(zmq.PUSH) as outbox,
        context.socket(zmq.PULL) as inbox,
    ):
        inbox.bind(from_engine_address(Path(folder)))
        outbox.bind(to_engine_address(Path(folder)))
        with closing(_Frontend(Path(folder))) as frontend:
            yield _Loop(core, executor, frontend), outbox, inbox


def test_a_reset_is_done_before_the_ping_behind_it_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngineConfig(executor="simulated", tokenizer="bytes")
    executor = SimulatedExecutor(config)
    core, done = Core(config, executor), []
    monkeypatch.setattr(core, "reset_prefix_cache", lambda: done.append("reset"))
    monkeypatch.setattr(core, "stats", lambda: Stats(decodes=len(done)))
    with looping(core, executor) as (loop, outbox, inbox):
        for message in (ResetPrefixCache(), Ping(3), Stop()):
            outbox.send(msgspec.msgpack.encode(message))
        loop.run()
        heard = msgspec.msgpack.decode(inbox.recv(), type=FromEngine)
    assert heard == Pong(3, Stats(decodes=1))


@pytest.mark.parametrize(("n", "most"), [(1, SEQUENCES_PER_TURN), (SEQUENCES_PER_TURN // 2, 2), (0, MESSAGES_PER_TURN)])
def test_a_turn_takes_a_few_messages_and_tells_how_many(monkeypatch: pytest.MonkeyPatch, n: int, most: int) -> None:
    """However many are there: what runs must go on, and the frontend sends more only when these are handled. With `n`
    0 each is to give up what has ended, which is no work."""
    config = EngineConfig(executor="simulated", tokenizer="bytes")
    executor = SimulatedExecutor(config)
    core, turn, taken, of_turns = Core(config, executor), Core.turn, [0], []

    def add(request: Add) -> None:
        taken[0] += 1

    def count() -> Outputs:
        of_turns.append(taken[0])
        return turn(core)

    def abort(request_id: str, index: int | None) -> int:
        taken[0] += 1
        return 0

    monkeypatch.setattr(core, "add", add)
    monkeypatch.setattr(core, "abort", abort)
    monkeypatch.setattr(core, "turn", count)
    with looping(core, executor) as (loop, outbox, inbox):
        for index in range(2 * MESSAGES_PER_TURN + 1):
            message = Add(str(index), [1], SamplingParams(n=n)) if n else Abort(str(index))
            outbox.send(msgspec.msgpack.encode(message))
        outbox.send(msgspec.msgpack.encode(Stop()))
        loop.run()
        steps = [b - a for a, b in zip([0, *of_turns], of_turns, strict=False)]
        wanted = [count for count, step in zip(of_turns, steps, strict=True) if step]
        told = []
        while len(told) < len(wanted) and inbox.poll(int(1000 * PATIENCE_S)):
            message = msgspec.msgpack.decode(inbox.recv(), type=FromEngine)
            told += [message.handled] if isinstance(message, Outputs) and message.handled else []
    assert max(steps) <= most
    assert told == wanted
