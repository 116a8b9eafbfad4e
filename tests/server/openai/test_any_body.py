"""Whatever a body holds, the answer is one of the client's concern, and the next request is served as ever."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.fake_engine import answer
from tests.server.openai.bodies import CALLS, NUM_BODIES, PLAUSIBLE, REQUESTS

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
DEPTH = 100_000


@pytest.fixture
async def anything(make_site: MakeSite) -> Site:
    site = await make_site(
        chat_config(enable_auto_tool_choice=True, tool_call_parser="mistral", reasoning_parser="qwen3")
    )
    site.engine.script = answer('[TOOL_CALLS]f{"a": 1}')
    return site


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code == 200:
        assert '"error":{' not in response.text
    else:
        error = response.json()["error"]
        assert error["code"] == response.status_code and 0 < len(error["message"]) < 4000


@settings(max_examples=NUM_BODIES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(call=CALLS)
async def test_any_body(anything: Site, call: tuple[str, dict[str, Any]]) -> None:
    path, body = call
    check(await anything.client.post(path, content=json.dumps(body), headers=JSON))
    assert anything.bridge.num_live == 0


def test_there_are_values_for_every_parameter() -> None:
    named = {name for models, _ in REQUESTS.values() for model in models for name in model.model_fields}
    assert named <= PLAUSIBLE.keys()


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize("opening", ["[", '{"a":'])
async def test_what_is_nested_without_end_is_refused(anything: Site, path: str, opening: str) -> None:
    deep = opening * DEPTH + "1" + {"[": "]", "{": "}"}[opening[0]] * DEPTH
    needed = {"messages": [{"role": "user", "content": "x"}], "prompt": "p", "input": "i", "tokens": [1]}
    for body in (
        deep,
        opening * DEPTH,
        *(json.dumps({name: 0}).replace("0", deep) for name in needed),
        json.dumps(needed | {"metadata": "?"}).replace('"?"', deep),
    ):
        response = await anything.client.post(path, content=body, headers=JSON)
        check(response)
        assert response.status_code == 400
