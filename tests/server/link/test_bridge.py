"""The bridge against a scripted engine: order, merging, limits, aborts and death."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import EngineDeadError, QueueFullError, RequestError
from seesaw.engine.wire.messages import (
    Abort,
    Add,
    CachedPrompt,
    FinishReason,
    Output,
    Outputs,
    Ping,
    Refused,
)
from seesaw.server.link.errors import EngineLostError, RestartingError
from seesaw.server.link.outbox import WINDOW_SEQUENCES
from tests.patience import PATIENCE_S
from tests.server.conftest import Line, attached, connected

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


async def test_a_closed_stream_leaves_nothing_to_the_collector(line: Line) -> None:
    stream = line.bridge.submit("a", [([1], GREEDY)])
    id = (await line.engine.expect(Add)).id
    await line.engine.send(Outputs([Output(id, 0, [9], FinishReason.STOP)], cached=[CachedPrompt(id, 1)]))
    assert [batch async for batch in stream]
    stream.close()
    assert stream.num_cached_tokens == 1
    await line.bridge.ping(PATIENCE_S)  # by its answer, nothing holds the last message any more
    held = weakref.ref(stream)
    gc.disable()
    try:
        del stream
        assert held() is None
    finally:
        gc.enable()


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


async def test_what_had_no_output_goes_to_the_next_engine_and_the_rest_ends() -> None:
    async with connected() as old:
        bridge = old.bridge
        waiting, begun = bridge.submit("w", [([1], GREEDY)]), bridge.submit("p", [([2], GREEDY), ([3], GREEDY)])
        ended = bridge.submit("e", [([4], GREEDY), ([5], GREEDY)], priority=3, cache_salt="s")
        ids = [(await old.engine.expect(Add)).id for _ in range(5)]
        await old.engine.send(Outputs([Output(ids[1], 0, [7]), Output(ids[3], 0, [8], FinishReason.STOP)]))
        await old.engine.send(Outputs(cached=[CachedPrompt(ids[0], 1)]))
        await bridge.ping(PATIENCE_S)
        old.channel.die(EngineDeadError("worker 1 was killed"))
        bridge.detach(await old.channel.death(), back_in_s=7.5)
        assert (bridge.num_live, bridge.room.sequences, bridge.room.tokens) == (2, 2, 2)
        assert await anext(begun) == [(0, Output(ids[1], 0, [7]))]  # what came is still delivered
        with pytest.raises(EngineLostError, match="worker 1 was killed"):
            await anext(begun)
        begun.close()
        for ask in (lambda: bridge.submit("n", [([1], GREEDY)]), lambda: bridge.check_room(1)):
            with pytest.raises(RestartingError) as restarting:
                ask()
            assert restarting.value.back_in_s in (7, 8)
        with pytest.raises(RestartingError):
            await bridge.ping(PATIENCE_S)
        bridge.detach(EngineDeadError("nor does the next one start"), back_in_s=-1.0)
        with pytest.raises(RestartingError) as restarting:
            await bridge.reset_prefix_cache(PATIENCE_S)
        assert restarting.value.back_in_s == 1
        old.channel._handle(Outputs([Output(ids[0], 0, [9], FinishReason.STOP)]))  # too late
        async with attached(bridge) as new:
            again = [await new.engine.expect(Add) for _ in range(2)]
            assert again == [Add(ids[0], [1], GREEDY), Add(ids[4], [5], GREEDY, 3, "s")]
            for id in (ids[0], ids[4]):
                await new.engine.send(Outputs([Output(id, 0, [10], FinishReason.STOP)]))
            assert [batch async for batch in waiting] == [[(0, Output(ids[0], 0, [10], FinishReason.STOP))]]
            assert [choice async for batch in ended for choice, _ in batch] == [0, 1]
            assert waiting.num_cached_tokens == 0
            await bridge.ping(PATIENCE_S)
            assert (bridge.num_live, bridge.room.sequences, bridge.room.tokens) == (0, 0, 0)
            assert not any(isinstance(message, Abort) for message in new.engine.received)


async def test_who_leaves_between_two_engines_is_forgotten() -> None:
    async with connected(max_queued_requests=3) as old:
        bridge = old.bridge
        old.engine.is_stuck = True
        aborted = bridge.submit("aborted", [([1], GREEDY)])
        stays, leaves = (bridge.submit(id, [([1], GREEDY)]) for id in ("stays", "leaves"))
        aborted.close()  # and the engine dies before it says that it let go
        await bridge.ping(PATIENCE_S)
        assert bridge.room.sequences == 3
        bridge.detach(EngineDeadError("gone"), back_in_s=1.0)
        assert bridge.room.sequences == 2
        leaves.close()
        assert (bridge.num_live, bridge.room.sequences) == (1, 1)
        async with attached(bridge) as new:
            assert (await new.engine.expect(Add)).id == "stays-0"
            bridge.submit("more", [([1], SamplingParams(n=2))]).close()
            stays.close()
            assert await new.engine.expect(Abort) == Abort("more-0")
            assert await new.engine.expect(Abort) == Abort("stays-0")
            await bridge.ping(PATIENCE_S)
            assert (bridge.num_live, bridge.room.sequences) == (0, 0)


@pytest.mark.parametrize("comes_back", [True, False])
async def test_a_ping_that_the_engine_dies_with_says_what_comes_of_it(comes_back: bool) -> None:
    """Its death is known to the channel before it is decided whether another one comes."""
    async with connected() as line:
        line.engine.silent = True
        asked = [asyncio.create_task(line.bridge.ping(PATIENCE_S))]
        asked.append(asyncio.create_task(line.bridge.reset_prefix_cache(PATIENCE_S)))
        await line.engine.expect(Ping)
        line.channel.die(EngineDeadError("worker 1 was killed"))
        asked.append(asyncio.create_task(line.bridge.ping(PATIENCE_S)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not any(task.done() for task in asked)
        if comes_back:
            line.bridge.detach(EngineDeadError("worker 1 was killed"), back_in_s=1.0)
        else:
            line.bridge.fail(EngineDeadError("worker 1 was killed"))
        for error in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(error, RestartingError if comes_back else EngineDeadError)


async def test_a_request_is_lost_with_two_engines_at_most() -> None:
    """It may be what they die of. What no engine was sent is lost with none."""
    large = SamplingParams(n=WINDOW_SEQUENCES)
    async with connected(max_queued_requests=3 * WINDOW_SEQUENCES) as first:
        bridge = first.bridge
        first.engine.is_stuck = True
        deadly = bridge.submit("deadly", [([1], large)])
        harmless = bridge.submit("harmless", [([2], large)])
        await first.engine.expect(Add)
        bridge.detach(EngineDeadError("gone"), back_in_s=1.0)
        async with attached(bridge) as second:
            second.engine.is_stuck = True
            assert (await second.engine.expect(Add)).id == "deadly-0"
            bridge.detach(EngineDeadError("gone"), back_in_s=1.0)
            with pytest.raises(EngineLostError):
                await anext(deadly)
            deadly.close()
            async with attached(bridge) as third:
                assert (await third.engine.expect(Add)).id == "harmless-0"
                harmless.close()


async def test_when_no_engine_comes_any_more_all_that_waits_ends() -> None:
    async with connected() as old:
        bridge = old.bridge
        stream = bridge.submit("a", [([1], GREEDY)])
        bridge.detach(EngineDeadError("gone"), back_in_s=1.0)
        bridge.fail(EngineDeadError("gone for good"))
        bridge.detach(EngineDeadError("gone"), back_in_s=1.0)
        with pytest.raises(EngineDeadError, match="for good"):
            await anext(stream)
        stream.close()
        with pytest.raises(EngineDeadError, match="for good"):
            bridge.check_room(1)
