"""The sockets to a scripted engine: its start, its health, its last words."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from functools import partial

import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import ConfigError, EngineDeadError
from seesaw.engine.wire.messages import Add, Dead, FinishReason, Output, Outputs, Ping, Progress, Stats
from seesaw.server.link.channel import Channel
from tests.patience import PATIENCE_S
from tests.server.conftest import Line
from tests.server.fake_engine import FakeEngine, short_dir

pytestmark = pytest.mark.anyio


async def test_only_an_engine_with_work_can_hang(line: Line) -> None:
    line.engine.silent = True
    has_work = asyncio.Event()
    hanging = asyncio.create_task(line.channel.hangs(0.0, has_work.is_set))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not hanging.done()
    has_work.set()
    assert await hanging
    line.channel.die(EngineDeadError("gone"))
    assert not await line.channel.hangs(PATIENCE_S, has_work.is_set)


async def test_the_engines_last_words_are_its_death_and_nothing_counts_after_them(line: Line) -> None:
    stream = line.bridge.submit("a", [([1], SamplingParams())])
    id = (await line.engine.expect(Add)).id
    line.engine.silent = True
    waiting = asyncio.create_task(line.channel.ping(PATIENCE_S))
    await line.engine.expect(Ping)
    await line.engine.say(id, "x")
    await line.engine.send(Dead("worker 1 ended with exit code -9"), Outputs([Output(id, 0, [7], FinishReason.STOP)]))
    assert str(await line.channel.death()) == "worker 1 ended with exit code -9"
    with pytest.raises(EngineDeadError, match="worker 1"):
        await waiting
    with pytest.raises(EngineDeadError, match="worker 1"):
        await line.channel.ping(PATIENCE_S)
    line.channel._handle(Outputs([Output(id, 0, [8], FinishReason.STOP)]))
    assert [output.tokens for _, output in await anext(stream)] == [[ord("x")]]
    assert line.bridge.num_live == 1


async def test_a_silent_engine_fails_a_ping_but_a_pong_brings_stats(line: Line) -> None:
    line.engine.stats = Stats(phase="tail")
    assert (await line.channel.ping(PATIENCE_S)).phase == "tail"
    assert line.channel.stats.phase == "tail"
    line.engine.silent = True
    with pytest.raises(TimeoutError):
        await line.channel.ping(0.02)


async def test_an_unreadable_message_counts_as_death(line: Line) -> None:
    await line.engine._sender.send(b"\xc1 not msgpack")
    assert "cannot read" in str(await line.channel.death())


async def test_a_process_that_ends_without_a_word_is_noticed() -> None:
    folder = short_dir()
    read, write = os.pipe()  # a process's sentinel is such a pipe: readable once its writer is gone
    channel = Channel(f"ipc://{folder}/down", f"ipc://{folder}/up", print, sentinel=read)
    channel.start()
    os.close(write)
    with pytest.raises(EngineDeadError, match="ended without a word"):
        await channel.ready()
    await channel.close()
    os.close(read)
    shutil.rmtree(folder)


async def test_the_last_words_of_a_process_that_ended_are_waited_for_while_others_come_before_them(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    due: list[Callable[[], None]] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda delay, f, *args: due.append(partial(f, *args)))
    with open(os.devnull) as sentinel:
        line.channel._sentinel = sentinel.fileno()
        line.channel._on_exit()
        line.channel._sentinel = None
    due.pop()()
    line.channel._handle(Outputs([]))
    for _ in range(2):
        due.pop()()
    assert not line.channel._death.done()
    line.channel._handle(Dead("no such folder", is_config=True))
    assert isinstance(await line.channel.death(), ConfigError)


async def test_start_reports_progress_and_what_the_operator_must_fix() -> None:
    folder = short_dir()
    addresses = f"ipc://{folder}/down", f"ipc://{folder}/up"
    lines: list[str] = []
    channel = Channel(*addresses, print, on_progress=lines.append)
    channel.start()
    engine = FakeEngine(*addresses)
    waiting = asyncio.create_task(channel.ready())
    await engine.send(Progress("loading"), Dead("no such folder", is_config=True))
    with pytest.raises(ConfigError, match="no such folder"):
        await waiting
    assert lines == ["loading"]
    await channel.close()
    await engine.close()
    shutil.rmtree(folder)
