"""An engine is kept: started again so many times, never beside the one before it, and ended whatever happens."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace

import msgspec
import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import ConfigError, EngineDeadError
from seesaw.engine.wire.messages import Add, Dead, EngineInfo, FinishReason, FromEngine, Ready
from seesaw.server.keeper import EngineKeeper
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.errors import RestartingError
from tests.patience import PATIENCE_S
from tests.server.fake_engine import INFO, FakeEngine, short_dir

pytestmark = pytest.mark.anyio

DEAD = Dead("worker 1 was killed")


class Handle:
    """An engine process that runs in here, and says so much when it is started."""

    def __init__(self, *words: FromEngine) -> None:
        self.folder = short_dir()
        self.send_address, self.receive_address = (f"ipc://{self.folder}/{name}" for name in ("down", "up"))
        self.engine = FakeEngine(self.send_address, self.receive_address)
        sentinel, self._alive = os.pipe()
        self.process = SimpleNamespace(sentinel=sentinel, kill=lambda: None)
        self.grace_s: float | None = None  # that it had to end
        self.saying = asyncio.create_task(self.engine.send(*words))

    def close(self, timeout_s: float) -> None:
        self.grace_s = timeout_s
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        self.close(0.0)

    async def forget(self) -> None:
        await self.engine.close()
        os.close(self._alive)
        os.close(self.process.sentinel)


class Host:
    """Starts one engine after the other: what each says, or why it cannot be started."""

    def __init__(self, *starts: list[FromEngine] | OSError) -> None:
        self.starts = [*starts]
        self.handles: list[Handle] = []
        self.lines: list[str] = []
        self.before_next: Callable[[Handle], object] = lambda handle: None

    def start(self) -> Handle:
        assert all(handle.grace_s is not None for handle in self.handles), "two engines at once"
        match self.starts.pop(0):
            case OSError() as error:
                raise error
            case words:
                self.handles.append(Handle(*words))
                self.before_next(self.handles[-1])
                return self.handles[-1]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0)


@asynccontextmanager
async def kept(host: Host, restarts: int) -> AsyncIterator[tuple[EngineKeeper, Bridge]]:
    bridge = Bridge(max_queued_requests=10, max_queued_tokens=100)
    keeper = EngineKeeper(
        bridge,
        host.start,  # type: ignore[arg-type]
        restarts=restarts,
        start_timeout_s=PATIENCE_S,
        engine_timeout_s=PATIENCE_S,
        report=host.lines.append,
        pause_s=(0.0, 0.0),
    )
    try:
        yield keeper, bridge
    finally:
        await keeper.close()
        assert all(handle.grace_s is not None for handle in host.handles)
        for handle in host.handles:
            await handle.forget()


def restarts_of(bridge: Bridge) -> int:
    lines = bridge.metrics.render().decode().splitlines()
    [line] = [line for line in lines if line.startswith("seesaw:engine_restarts_total")]
    return int(float(line.split()[-1]))


async def test_a_dead_engine_is_started_again_and_has_what_waits() -> None:
    host = Host([Ready(INFO)], [Ready(msgspec.structs.replace(INFO, device_blocks=50))])
    async with kept(host, 1) as (keeper, bridge):
        assert await keeper.start() == INFO
        keeping = asyncio.create_task(keeper.keep())
        stream = bridge.submit("a", [([1], SamplingParams())])
        await host.handles[0].engine.expect(Add)
        assert restarts_of(bridge) == 0
        await host.handles[0].engine.send(DEAD)
        await host.until(lambda: len(host.handles) == 2)
        id = (await host.handles[1].engine.expect(Add)).id
        await host.handles[1].engine.say(id, "x", FinishReason.STOP)
        assert [output.tokens for batch in [batch async for batch in stream] for _, output in batch] == [[ord("x")]]
        assert restarts_of(bridge) == 1
        assert host.lines[:2] == ["error: worker 1 was killed", "starting the engine again (1 of 1 times)"]
        waiting = bridge.submit("b", [([1], SamplingParams())])
        await host.handles[1].engine.send(DEAD)
        assert str(await keeping) == "worker 1 was killed"
        with pytest.raises(EngineDeadError):
            await anext(waiting)


async def test_a_start_that_fails_counts() -> None:
    starts: list[list[FromEngine] | OSError] = [[Ready(INFO)], OSError(11, "Resource temporarily unavailable")]
    host = Host(*starts, [Dead("no room", is_config=True)], [Ready(INFO)], [Dead("no room", is_config=True)])
    async with kept(host, 4) as (keeper, bridge):
        await keeper.start()
        keeping = asyncio.create_task(keeper.keep())
        await host.handles[0].engine.send(DEAD)
        await host.until(lambda: len(host.handles) == 3 and bridge.has_engine)
        assert "error: the engine's process could not be started: Resource temporarily" in host.lines[2]
        assert host.handles[1].grace_s == 0 and host.handles[0].grace_s
        await host.handles[2].engine.send(DEAD)
        assert isinstance(await keeping, ConfigError)
        assert restarts_of(bridge) == 4 and host.starts == []


@pytest.mark.parametrize("changes", [{"max_model_len": 32}, {"vocab_size": 300}, {"eos_token_ids": (3,)}])
async def test_an_engine_of_another_model_is_none(changes: dict[str, object]) -> None:
    other: EngineInfo = msgspec.structs.replace(INFO, **changes)
    host = Host([Ready(INFO)], [Ready(other)])
    async with kept(host, 1) as (keeper, _):
        await keeper.start()
        keeping = asyncio.create_task(keeper.keep())
        await host.handles[0].engine.send(DEAD)
        assert "another model or context" in str(await keeping)


async def test_an_engine_that_dies_after_the_last_signal_stays_dead() -> None:
    host = Host([Ready(INFO)])
    async with kept(host, 5) as (keeper, _):
        await keeper.start()
        keeping = asyncio.create_task(keeper.keep())
        keeper.keep_no_longer()
        await host.handles[0].engine.send(DEAD)
        assert str(await keeping) == "worker 1 was killed"


async def test_it_ends_at_once_while_an_engine_starts_again() -> None:
    host = Host([Ready(INFO)], [])
    async with kept(host, 1) as (keeper, bridge):
        await keeper.start()
        keeping = asyncio.create_task(keeper.keep())
        await host.handles[0].engine.send(DEAD)
        await host.until(lambda: len(host.handles) == 2)
        with pytest.raises(RestartingError):
            bridge.check_room(1)
        keeping.cancel()
    assert host.handles[1].grace_s == 0.0


async def test_it_ends_while_the_first_engine_starts_and_nobody_waits_for_it() -> None:
    async def fail() -> None:
        await host.until(lambda: host.handles)
        raise ConfigError("no tokenizer")

    host = Host([])
    async with kept(host, 1) as (keeper, bridge):
        with pytest.raises(ConfigError):
            await asyncio.gather(keeper.start(), fail())
    assert host.handles[0].grace_s == 0.0 and not bridge.has_engine


async def test_sockets_that_cannot_be_had_are_a_start_that_failed() -> None:
    host = Host([Ready(INFO)], [Ready(INFO)])
    async with kept(host, 1) as (keeper, _):
        await keeper.start()
        keeping = asyncio.create_task(keeper.keep())
        host.before_next = lambda handle: shutil.rmtree(handle.folder)
        await host.handles[0].engine.send(DEAD)
        assert "the engine's process could not be started" in str(await keeping)
        host.handles[1].saying.cancel()


async def test_a_first_engine_that_cannot_be_started_is_one_sentence() -> None:
    async with kept(Host(OSError(12, "Cannot allocate memory")), 1) as (keeper, _):
        with pytest.raises(EngineDeadError, match="could not be started: Cannot allocate memory"):
            await keeper.start()
