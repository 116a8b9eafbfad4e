"""Whatever a body holds, the answer is one of the client's concern, and the next request is served as ever."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.openai.protocol.chat import ChatRequest
from server.openai.protocol.completions import CompletionRequest
from server.openai.protocol.responses import ResponsesRequest
from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.fake_engine import answer

pytestmark = pytest.mark.anyio

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(
        ["auto", "none", "required", "user", "assistant", "tool", "text", "function", "{}", "[TOOL_CALLS]"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "tool_calls", "function", "name", "arguments"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "x"]), "content": VALUES | st.text(max_size=8)},
    optional={"tool_calls": VALUES, "name": VALUES, "tool_call_id": VALUES, "reasoning": VALUES},
)
FIELDS = st.sampled_from(sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, *ChatRequest.unsupported}))
CHANGES = st.dictionaries(FIELDS, VALUES, max_size=3)
ITEM = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["message", "function_call", "function_call_output", "reasoning", "x"]),
        "role": st.sampled_from(["user", "assistant"]),
        **dict.fromkeys(("content", "summary", "output"), VALUES | st.text(max_size=8)),
        **dict.fromkeys(("arguments", "call_id", "name", "status"), st.text(max_size=8) | st.just("{}") | VALUES),
    },
)
RESPONSE_FIELDS = st.sampled_from(sorted({*ResponsesRequest.model_fields, *ResponsesRequest.unsupported} - {"input"}))


@pytest.fixture
async def anything(make_site: MakeSite) -> Site:
    site = await make_site(
        chat_config(enable_auto_tool_choice=True, tool_call_parser="mistral", reasoning_parser="qwen3")
    )
    site.engine.script = answer('[TOOL_CALLS]f{"a": 1}')
    return site


async def is_served(site: Site, path: str, body: dict[str, Any]) -> None:
    response = await site.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code == 200:
        assert '"error":{' not in response.text
    else:
        error = response.json()["error"]
        assert error["code"] == response.status_code and 0 < len(error["message"]) < 4000


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(messages=st.lists(MESSAGE, min_size=1, max_size=3), changes=CHANGES)
async def test_chats(anything: Site, messages: list[Any], changes: dict[str, Any]) -> None:
    await is_served(anything, "/v1/chat/completions", {"messages": messages} | changes)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(items=st.lists(ITEM, max_size=3), changes=st.dictionaries(RESPONSE_FIELDS, VALUES, max_size=3))
async def test_responses(anything: Site, items: list[Any], changes: dict[str, Any]) -> None:
    await is_served(anything, "/v1/responses", {"input": items} | changes)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=CHANGES, path=st.sampled_from(["/v1/completions", "/tokenize", "/detokenize"]))
async def test_other_bodies(anything: Site, changes: dict[str, Any], path: str) -> None:
    await is_served(anything, path, {"prompt": "p", "tokens": [1]} | changes)
