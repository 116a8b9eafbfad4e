"""Few requests are objects at once; the others wait as bytes."""

from __future__ import annotations

import asyncio
import gc

import pytest

from seesaw.engine.wire.messages import Add, FinishReason
from seesaw.server.openai.gates import LARGE_AT_ONCE, SMALL_AT_ONCE, Gates
from seesaw.server.openai.protocol.body import SMALL_BODY_BYTES
from seesaw.server.openai.protocol.messages import Message
from tests.server.conftest import MakeSite, chat_config

pytestmark = pytest.mark.anyio


async def test_so_many_are_prepared_at_once_and_small_ones_wait_for_no_large_ones() -> None:
    gates, let_go, entered = Gates(), asyncio.Event(), [0, 0]

    async def prepare(is_large: bool) -> None:
        async with gates.enter(SMALL_BODY_BYTES + is_large) as leave:
            entered[is_large] += 1
            await let_go.wait()
            leave()
            leave()

    large = [asyncio.create_task(prepare(True)) for _ in range(3 * LARGE_AT_ONCE)]
    small = [asyncio.create_task(prepare(False)) for _ in range(3 * SMALL_AT_ONCE)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert entered == [SMALL_AT_ONCE, LARGE_AT_ONCE]
    small[-1].cancel()
    let_go.set()
    await asyncio.gather(*large, *small, return_exceptions=True)
    assert entered == [3 * SMALL_AT_ONCE - 1, 3 * LARGE_AT_ONCE]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
async def test_a_request_that_runs_keeps_neither_its_place_nor_its_messages(make_site: MakeSite, path: str) -> None:
    """A message is dozens of times as large as what was sent, and answers take minutes."""
    site = await make_site(chat_config(), max_queued_requests=2 * SMALL_AT_ONCE)
    messages = [{"role": "user", "content": "x"}] * 10
    waiting = []
    for _ in range(SMALL_AT_ONCE + 1):
        body = {"messages": messages, "input": messages, "stream": False}
        waiting.append(asyncio.create_task(site.client.post(path, json=body)))
    adds = [await site.engine.expect(Add) for _ in waiting]
    gc.collect()
    assert sum(isinstance(each, Message) for each in gc.get_objects()) <= len(waiting)
    for add in adds:
        await site.engine.say(add.id, "x", FinishReason.STOP)
    assert {(await task).status_code for task in waiting} == {200}
