"""The bridge against a scripted engine: order, merging, limits, aborts and death."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from functools import partial

import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import ConfigError, EngineDeadError, QueueFullError, RequestError
from seesaw.engine.wire.messages import (
    Abort,
    Add,
    CachedPrompt,
    Dead,
    FinishReason,
    Output,
    Outputs,
    Progress,
    Refused,
    Stats,
)
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.outbox import WINDOW_SEQUENCES
from tests.patience import PATIENCE_S
from tests.server.conftest import Line, connected
from tests.server.fake_engine import FakeEngine, short_dir

pytestmark = pytest.mark.anyio

GREEDY = SamplingParams(temperature=0.0)


async def test_outputs_of_all_requests_reach_their_choices(line: Line) -> None:
    two = SamplingParams(n=2)
    stream = line.bridge.submit("a", [([1, 2], two), ([3], two)])
    first, second = await line.engine.expect(Add), await line.engine.expect(Add)
    assert (first.prompt, second.prompt, first.sampling) == ([1, 2], [3], two)
    await line.engine.send(
        Outputs(
            [
                Output(second.id, 1, [9], FinishReason.STOP),
                Output(first.id, 0, [6], FinishReason.STOP),
                Output(second.id, 0, [8], FinishReason.LENGTH),
                Output(first.id, 1, [7], FinishReason.STOP),
            ]
        )
    )
    got = {choice: output.tokens async for batch in stream for choice, output in batch}
    assert got == {0: [6], 1: [7], 2: [8], 3: [9]}


async def test_what_a_slow_client_has_not_taken_is_merged(line: Line) -> None:
    stream = line.bridge.submit("a", [([1], GREEDY)])
    id = (await line.engine.expect(Add)).id
    for token in range(50):
        await line.engine.send(Outputs([Output(id, 0, [token])]))
    await line.engine.send(Outputs([Output(id, 0, [50], FinishReason.STOP, stop_token=50)]))
    await line.bridge.ping(PATIENCE_S)  # by its answer, all before it has arrived
    batches = [batch async for batch in stream]
    assert batches == [[(0, Output(id, 0, list(range(51)), FinishReason.STOP, 50))]]


async def test_cached_tokens_are_known_with_the_first_output(line: Line) -> None:
    stream = line.bridge.submit("a", [([1, 2], SamplingParams(n=2)), ([3], SamplingParams(n=2))], cache_salt="s")
    first, second = await line.engine.expect(Add), await line.engine.expect(Add)
    assert (first.cache_salt, second.cache_salt) == ("s", "s")
    cached = [CachedPrompt(first.id, 1), CachedPrompt("gone", 7)]
    await line.engine.send(Outputs([Output(first.id, 1, [9])], cached=cached))
    await anext(stream)
    assert stream.num_cached_tokens == 1
    await line.engine.send(Outputs(cached=[CachedPrompt(second.id, 4)]), Outputs([Output(second.id, 0, [9])]))
    await anext(stream)
    assert stream.num_cached_tokens == 5
    stream.close()


async def test_closing_early_aborts_and_a_finished_request_is_not_aborted(line: Line) -> None:
    done = line.bridge.submit("done", [([1], GREEDY)])
    cut = line.bridge.submit("cut", [([2], GREEDY), ([3], GREEDY)])
    ids = [(await line.engine.expect(Add)).id for _ in range(3)]
    await line.engine.send(
        Outputs([Output(ids[0], 0, [5], FinishReason.STOP), Output(ids[1], 0, [5], FinishReason.STOP)])
    )
    async for _ in done:
        pass
    done.close()
    cut.close()
    cut.close()
    await line.bridge.ping(PATIENCE_S)
    assert [m for m in line.engine.received if isinstance(m, Abort)] == [Abort(ids[2])]
    assert line.bridge.room.sequences == 0


async def test_a_dropped_choice_is_aborted_by_itself_and_the_request_with_the_last(line: Line) -> None:
    stream = line.bridge.submit("a", [([1], SamplingParams(n=2))])
    id = (await line.engine.expect(Add)).id
    await line.engine.send(Outputs([Output(id, 0, [5]), Output(id, 1, [6])]))
    await anext(stream)
    stream.drop(0)
    await line.engine.send(Outputs([Output(id, 0, [7]), Output(id, 1, [8])]))
    assert await anext(stream) == [(1, Output(id, 1, [8]))]
    assert await line.engine.expect(Abort) == Abort(id, 0)
    stream.drop(1)
    assert await line.engine.expect(Abort) == Abort(id)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_the_queue_is_bounded_by_requests_without_a_first_token() -> None:
    async with connected(max_queued_requests=2) as line:
        line.bridge.submit("a", [([1], GREEDY)])
        with pytest.raises(QueueFullError):
            line.bridge.submit("b", [([1], GREEDY), ([2], GREEDY)])
        id = (await line.engine.expect(Add)).id
        await line.engine.say(id, "x")
        await line.bridge.ping(PATIENCE_S)
        stream = line.bridge.submit("c", [([1], GREEDY), ([2], GREEDY)])
        with pytest.raises(QueueFullError):
            line.bridge.submit("d", [([1], GREEDY)])
        stream.close()
        await line.bridge.ping(PATIENCE_S)
        line.bridge.submit("e", [([1], GREEDY), ([2], GREEDY)])
        assert [m.id[0] for m in line.engine.received if isinstance(m, Add)] == ["a", "c", "c"]  # nothing of b or d


async def test_the_queue_counts_sequences() -> None:
    async with connected(max_queued_requests=4) as line:
        line.bridge.submit("a", [([1], SamplingParams(n=3))])
        with pytest.raises(QueueFullError, match="3 sequences wait and at most 4 may"):
            line.bridge.submit("b", [([1], SamplingParams(n=2))])
        id = (await line.engine.expect(Add)).id
        for _ in range(2):  # only the first output ends the wait of its sequence, and of no other
            await line.engine.say(id, "x", index=1)
        await line.bridge.ping(PATIENCE_S)
        assert line.bridge.room.sequences == 2
        line.bridge.submit("b", [([1], SamplingParams(n=2))]).close()
        await line.bridge.ping(PATIENCE_S)
        assert line.bridge.room.sequences == 2


async def test_the_queue_counts_tokens_of_prompts_once_for_all_continuations() -> None:
    async with connected(max_queued_tokens=10) as line:
        line.bridge.submit("a", [([1] * 6, SamplingParams(n=2))])
        with pytest.raises(QueueFullError, match="6 tokens of prompts wait and at most 10 may"):
            line.bridge.submit("b", [([1] * 5, GREEDY)])
        id = (await line.engine.expect(Add)).id
        for index, waiting in ((0, 6), (1, 0)):
            await line.engine.say(id, "x", index=index)
            await line.bridge.ping(PATIENCE_S)
            assert line.bridge.room.tokens == waiting


async def test_an_aborted_request_takes_its_room_until_the_engine_has_let_go() -> None:
    async with connected(max_queued_requests=2) as line:
        line.engine.is_stuck = True
        line.bridge.submit("a", [([1], SamplingParams(n=2))]).close()
        await line.engine.expect(Abort)
        with pytest.raises(QueueFullError):
            line.bridge.submit("b", [([1], GREEDY)])
        line.engine.is_stuck = False
        await line.bridge.ping(PATIENCE_S)
        assert (line.bridge.room.sequences, line.bridge.room.tokens) == (0, 0)
        line.bridge.submit("c", [([1], SamplingParams(n=2))])


async def test_pings_and_aborts_go_before_requests_that_the_engine_has_not_taken() -> None:
    async with connected(max_queued_requests=10 * WINDOW_SEQUENCES) as line:
        line.engine.is_stuck = True
        many = [line.bridge.submit(str(index), [([1], SamplingParams(n=WINDOW_SEQUENCES // 4))]) for index in range(40)]
        await line.bridge.ping(PATIENCE_S)
        sent = [message.id for message in line.engine.received if isinstance(message, Add)]
        assert sent == ["0-0", "1-0", "2-0", "3-0"]  # though all 40 were accepted
        for stream in many[1:]:
            stream.close()
        assert line.bridge.room.sequences == WINDOW_SEQUENCES  # those that were not sent are gone
        line.engine.is_stuck = False
        await line.bridge.ping(PATIENCE_S)
        assert line.bridge.room.sequences == WINDOW_SEQUENCES // 4
        assert sum(isinstance(message, Add) for message in line.engine.received) == 4


async def test_a_request_larger_than_the_window_goes_alone() -> None:
    async with connected(max_queued_requests=4 * WINDOW_SEQUENCES) as line:
        line.engine.is_stuck = True
        for id in "ab":
            line.bridge.submit(id, [([1], SamplingParams(n=WINDOW_SEQUENCES + 1))])
        await line.bridge.ping(PATIENCE_S)
        assert [message.id for message in line.engine.received if isinstance(message, Add)] == ["a-0"]
        line.engine.is_stuck = False
        await line.bridge.ping(PATIENCE_S)
        assert [(await line.engine.expect(Add)).id for _ in range(2)] == ["a-0", "b-0"]


async def test_what_cannot_be_encoded_changes_nothing(line: Line) -> None:
    with pytest.raises(OverflowError):
        line.bridge.submit("a", [([1], GREEDY), ([2], SamplingParams(top_k=2**70))])
    assert line.bridge.room.sequences == 0
    await line.bridge.ping(PATIENCE_S)
    assert not any(isinstance(message, Add) for message in line.engine.received)


async def test_only_an_engine_with_work_can_hang(line: Line) -> None:
    line.engine.silent = True
    hanging = asyncio.create_task(line.bridge.hangs(0.0))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not hanging.done()
    line.bridge.submit("a", [([1], GREEDY)])
    assert await hanging
    line.bridge.fail(EngineDeadError("gone"))
    assert not await line.bridge.hangs(PATIENCE_S)


async def test_the_engines_last_words_end_every_stream(line: Line) -> None:
    streams = [line.bridge.submit(str(i), [([1], GREEDY)]) for i in range(3)]
    id = (await line.engine.expect(Add)).id
    await line.engine.say(id, "x")
    await line.engine.send(Dead("worker 1 ended with exit code -9"))
    assert str(await line.bridge.death()) == "worker 1 ended with exit code -9"
    assert [output.tokens for _, output in await anext(streams[0])] == [[ord("x")]]
    for stream in streams:
        with pytest.raises(EngineDeadError):
            await anext(stream)
        stream.close()
    with pytest.raises(EngineDeadError):
        line.bridge.submit("late", [([1], GREEDY)])
    with pytest.raises(EngineDeadError):
        await line.bridge.ping(PATIENCE_S)


async def test_a_silent_engine_fails_a_ping_but_a_pong_brings_stats(line: Line) -> None:
    line.engine.stats = Stats(phase="tail")
    assert (await line.bridge.ping(PATIENCE_S)).phase == "tail"
    assert line.bridge.stats().phase == "tail"
    line.engine.silent = True
    with pytest.raises(TimeoutError):
        await line.bridge.ping(0.02)


async def test_an_unreadable_message_counts_as_death(line: Line) -> None:
    stream = line.bridge.submit("a", [([1], GREEDY)])
    await line.engine._sender.send(b"\xc1 not msgpack")
    with pytest.raises(EngineDeadError):
        await anext(stream)


async def test_a_process_that_ends_without_a_word_is_noticed() -> None:
    folder = short_dir()
    read, write = os.pipe()  # a process's sentinel is such a pipe: readable once its writer is gone
    bridge = Bridge(
        f"ipc://{folder}/down", f"ipc://{folder}/up", max_queued_requests=1, max_queued_tokens=1, sentinel=read
    )
    bridge.start()
    os.close(write)
    with pytest.raises(EngineDeadError, match="ended without a word"):
        await bridge.ready()
    await bridge.close()
    os.close(read)
    shutil.rmtree(folder)


async def test_the_last_words_of_a_process_that_ended_are_waited_for_while_others_come_before_them(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    due: list[Callable[[], None]] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda delay, f, *args: due.append(partial(f, *args)))
    with open(os.devnull) as sentinel:
        line.bridge._sentinel = sentinel.fileno()
        line.bridge._on_exit()
        line.bridge._sentinel = None
    due.pop()()
    line.bridge._handle(Outputs([]))
    for _ in range(2):
        due.pop()()
    assert not line.bridge._death.done()
    line.bridge._handle(Dead("no such folder", is_config=True))
    assert isinstance(await line.bridge.death(), ConfigError)


async def test_start_reports_progress_and_what_the_operator_must_fix() -> None:
    folder = short_dir()
    addresses = f"ipc://{folder}/down", f"ipc://{folder}/up"
    lines: list[str] = []
    bridge = Bridge(*addresses, max_queued_requests=1, max_queued_tokens=1, on_progress=lines.append)
    bridge.start()
    engine = FakeEngine(*addresses)
    waiting = asyncio.create_task(bridge.ready())
    await engine.send(Progress("loading"), Dead("no such folder", is_config=True))
    with pytest.raises(ConfigError, match="no such folder"):
        await waiting
    assert lines == ["loading"]
    await bridge.close()
    await engine.close()
    shutil.rmtree(folder)


async def test_a_refused_request_ends_its_stream_with_the_reason(line: Line) -> None:
    stream = line.bridge.submit("a", [([1], GREEDY), ([2], GREEDY)])
    other = line.bridge.submit("b", [([3], GREEDY)])
    ids = [(await line.engine.expect(Add)).id for _ in range(3)]
    await line.engine.send(Refused(ids[1], "too long", param="prompt"), Refused(ids[2], "full", queue_full=True))
    with pytest.raises(RequestError, match="too long") as refused:
        await anext(stream)
    assert refused.value.param == "prompt"
    stream.close()
    assert await line.engine.expect(Abort) == Abort(ids[0])  # its sibling
    with pytest.raises(QueueFullError):
        await anext(other)
    await line.bridge.ping(PATIENCE_S)
    assert line.bridge.room.sequences == 0
