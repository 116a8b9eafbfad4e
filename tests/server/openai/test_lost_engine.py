"""An engine dies in the midst of answers, and another one takes its place: what nobody was told of is begun again."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import Add, FinishReason
from tests.patience import PATIENCE_S
from tests.server.conftest import MakeSite, Site, attached, chat_config
from tests.server.fake_engine import FakeEngine

pytestmark = pytest.mark.anyio

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "p", "stop": "!", "n": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "n": 2},
    "/v1/responses": {"input": "hi"},
}


async def begin(site: Site, path: str, engine: FakeEngine, **options: Any) -> tuple[asyncio.Task[httpx.Response], Add]:
    """A request of which something has come."""
    asking = asyncio.create_task(site.client.post(path, json=BODIES[path] | options))
    return asking, await begun(site, engine)


async def begun(site: Site, engine: FakeEngine) -> Add:
    add = await engine.expect(Add)
    await engine.say(add.id, "lost")
    await site.bridge.ping(PATIENCE_S)
    return add


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_that_comes_whole_is_begun_again(make_site: MakeSite, path: str) -> None:
    site = await make_site(chat_config())
    asking, first = await begin(site, path, site.engine)
    site.bridge.detach(EngineDeadError("worker 1 of secret-host"), back_in_s=1.0)
    async with attached(site.bridge) as new:
        second = await new.engine.expect(Add)
        assert (second.prompt, second.sampling) == (first.prompt, first.sampling)
        for index in range(second.sampling.n):
            await new.engine.say(second.id, "found", FinishReason.STOP, index)
        response = await asking
    assert response.status_code == 200
    assert "found" in response.text and "lost" not in response.text
    assert response.json()["usage"].get("completion_tokens", 5) == 5 * second.sampling.n
    assert (site.bridge.num_live, site.bridge.room.sequences) == (0, 0)


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_that_has_begun_ends_with_its_error(make_site: MakeSite, path: str) -> None:
    site = await make_site(chat_config())
    asking, _ = await begin(site, path, site.engine, stream=True)
    site.bridge.detach(EngineDeadError("worker 1 of secret-host"), back_in_s=1.0)
    response = await asking
    assert response.status_code == 200 and "being restarted" in response.text and "secret-host" not in response.text
    assert site.bridge.num_live == 0


async def test_an_answer_that_was_lost_twice_is_an_error(site: Site) -> None:
    asking, _ = await begin(site, "/v1/completions", site.engine)
    site.bridge.detach(EngineDeadError("worker 1 of secret-host"), back_in_s=1.0)
    async with attached(site.bridge) as new:
        await begun(site, new.engine)
        site.bridge.detach(EngineDeadError("worker 1 of secret-host"), back_in_s=1.0)
        response = await asking
    assert response.status_code == 500 and "being restarted" in response.json()["error"]["message"]
    assert "secret-host" not in response.text


async def test_what_waits_to_be_begun_again_ends_with_the_server_or_its_client(site: Site) -> None:
    asking, _ = await begin(site, "/v1/completions", site.engine)
    leaving, _ = await begin(site, "/v1/completions", site.engine)
    site.bridge.detach(EngineDeadError("gone"), back_in_s=1.0)
    leaving.cancel()
    site.bridge.fail(EngineDeadError("gone for good"))
    assert (await asking).status_code == 500
