"""`/v1/responses` in process: what becomes of the input, and what clients get."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from seesaw.engine.sampling.defaults import SamplingDefaults
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import Add, FinishReason, Output
from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.fake_engine import INFO, answer
from tests.server.openai.streams import named_events

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}, "strict": True}
CALL = '[TOOL_CALLS]f{"a": 1}'


@pytest.fixture
async def chatty(make_site: MakeSite) -> Site:
    return await make_site(chat_config())


@pytest.fixture
async def able(make_site: MakeSite) -> Site:
    """Thinks and calls tools."""
    return await make_site(
        chat_config(enable_auto_tool_choice=True, tool_call_parser="mistral", reasoning_parser="deepseek_r1")
    )


async def respond(site: Site, **body: object) -> httpx.Response:
    return await site.client.post("/v1/responses", json={"input": "hi"} | body)


async def prompt_of(site: Site, **body: object) -> str:
    """The prompt that reaches the engine."""
    site.engine.script = answer("x")
    response = await respond(site, **body)
    assert response.status_code == 200, response.text
    return bytes((await site.engine.expect(Add)).prompt).decode()


def without_ids(value: Any) -> Any:
    """Items and parts without what differs from run to run."""
    match value:
        case dict():
            return {key: without_ids(each) for key, each in value.items() if key not in ("id", "call_id")}
        case list():
            return [without_ids(each) for each in value]
    return value


def text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def message(text: str, status: str = "completed") -> dict[str, Any]:
    return {"type": "message", "status": status, "role": "assistant", "content": [text_part(text)]}


def reasoning(text: str, status: str = "completed") -> dict[str, Any]:
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "status": status, "summary": [], "content": content}


def call(arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "status": "completed", "name": "f", "arguments": arguments}


async def test_a_whole_response(chatty: Site) -> None:
    chatty.engine.script = answer("héllo")
    response = await respond(
        chatty, model="fake", instructions="be", metadata={"a": "b"}, store=True, temperature=0.5, max_output_tokens=20
    )
    body = response.json()
    assert response.status_code == 200
    assert body["id"] == f"resp_{response.headers['x-request-id']}"
    assert body["output"][0]["id"].startswith("msg_")
    assert without_ids(body["output"]) == [message("héllo")]
    shown = {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": "be",
        "max_output_tokens": 20,
        "metadata": {"a": "b"},
        "model": "fake",
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": {
            "input_tokens": 12,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 6,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 18,
        },
    }
    assert {name: body[name] for name in shown} == shown


@pytest.mark.parametrize("stream", [False, True])
async def test_a_salt_and_what_was_cached(chatty: Site, stream: bool) -> None:
    chatty.engine.script = answer("a")
    chatty.engine.num_cached_tokens = 4
    response = await respond(chatty, cache_salt="mine", stream=stream)
    whole = named_events(response)[-1]["response"] if stream else response.json()
    assert whole["usage"]["input_tokens_details"] == {"cached_tokens": 4}
    assert (await chatty.engine.expect(Add)).cache_salt == "mine"
    refused = await respond(chatty, cache_salt="")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "cache_salt")


async def test_sampling_reaches_the_engine(make_site: MakeSite) -> None:
    site = await make_site(chat_config(), defaults=SamplingDefaults({"temperature": 0.6, "top_p": 0.9}))
    site.engine.script = answer("x")
    shown = (await respond(site, max_output_tokens=7, top_p=None, top_k=5, seed=3, stop="y")).json()
    expected = SamplingParams(max_tokens=7, temperature=0.6, top_p=0.9, top_k=5, seed=3, stop="y")
    assert (await site.engine.expect(Add)).sampling == expected
    assert (shown["temperature"], shown["top_p"]) == (0.6, 0.9)
    await respond(site)
    assert (await site.engine.expect(Add)).sampling.max_tokens == INFO.max_model_len - 7


async def test_input_of_all_kinds_is_rendered(chatty: Site) -> None:
    assert await prompt_of(chatty) == "u:hi;a:"
    parts = [{"type": "input_text", "text": "b"}, {"type": "input_text", "text": "c"}]
    items = [
        {"role": "developer", "content": "a"},
        {"type": "message", "role": "user", "content": parts},
        {"type": "message", "role": "assistant", "id": "m", "status": "completed", "content": [text_part("d")]},
    ]
    assert await prompt_of(chatty, input=items, instructions="i") == "s:i;d:a;u:b\nc;a:d;a:"
    items[-1]["status"] = "incomplete"
    assert await prompt_of(chatty, input=items) == "d:a;u:b\nc;a:d"


HISTORY = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.reasoning_content }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}[{{ c.function.name }}{{ c.function.arguments.a }}{{ c.id }}]{% endfor %}"
    "{{ m.tool_call_id }};{% endfor %}{{ tools|length }}{{ tools[0].function.name }}{{ reasoning_effort }}"
)


async def test_a_turn_of_the_model_is_one_message(make_site: MakeSite) -> None:
    site = await make_site(chat_config(chat_template=HISTORY, enable_auto_tool_choice=True, tool_call_parser="hermes"))
    items = [
        {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "R"}]},
        {"type": "message", "role": "assistant", "content": "T"},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"a": "A"}'},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "o"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "p"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "S"}]},
        {"type": "message", "role": "assistant", "content": "U"},
        {"type": "message", "role": "assistant", "content": "V"},
    ]
    assert await prompt_of(site, input=items, tools=[TOOL], reasoning={"effort": "low"}) == (
        "a:RT[fA1][g2];t:o1;t:p2;a:SU;a:V;1flow"
    )


async def test_a_response_can_be_sent_back(able: Site) -> None:
    able.engine.script = answer(f"a</think>b{CALL}")
    output = (await respond(able, tools=[TOOL], tool_choice="auto")).json()["output"]
    await able.engine.expect(Add)
    result = {"type": "function_call_output", "call_id": output[2]["call_id"], "output": "3"}
    assert await prompt_of(able, input=[{"role": "user", "content": "q"}, *output, result], tools=[TOOL]) == (
        "u:q;a:b;t:3;a:"
    )


async def test_reasoning_text_and_calls_are_items(able: Site) -> None:
    able.engine.script = answer(f"ab</think>c{CALL}{CALL}")
    body = (await respond(able, tools=[TOOL])).json()
    assert without_ids(body["output"]) == [reasoning("ab"), message("c"), call('{"a": 1}'), call('{"a": 1}')]
    assert [item["id"].split("_")[0] for item in body["output"]] == ["rs", "msg", "fc", "fc"]
    assert len({item["call_id"] for item in body["output"][2:]}) == 2
    assert (body["tools"], body["usage"]["output_tokens_details"]) == ([TOOL], {"reasoning_tokens": 2})
    body = (await respond(able, tools=[TOOL], parallel_tool_calls=False)).json()
    assert (len(body["output"]), body["parallel_tool_calls"]) == (3, False)
    body = (await respond(able, tools=[TOOL], tool_choice="none")).json()
    assert without_ids(body["output"]) == [reasoning("ab"), message(f"c{CALL}{CALL}")]


async def test_an_answer_that_is_cut_off_is_incomplete(able: Site) -> None:
    able.engine.script = answer("abcd")
    body = (await respond(able, max_output_tokens=2)).json()
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert without_ids(body["output"]) == [reasoning("ab", "incomplete")]
    *_, last = named_events(await respond(able, max_output_tokens=2, stream=True))
    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert without_ids(last["response"]["output"]) == without_ids(body["output"])


async def test_an_answer_of_nothing_is_an_empty_message(chatty: Site) -> None:
    chatty.engine.script = lambda add: [Output(add.id, 0, [], FinishReason.STOP)]
    assert without_ids((await respond(chatty)).json()["output"]) == [message("")]


async def test_a_stream_is_as_openais(able: Site) -> None:
    able.engine.script = answer(f"a</think>bc{CALL}")
    got = named_events(await respond(able, tools=[TOOL], stream=True))
    first, second, *middle, last = got
    assert (first["type"], second["type"]) == ("response.created", "response.in_progress")
    assert first["response"] == second["response"]
    begun = first["response"]
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    assert last["type"] == "response.completed"
    whole = last["response"]
    assert whole == begun | {"status": "completed", "output": whole["output"], "usage": whole["usage"]}
    assert without_ids(whole["output"]) == [reasoning("a"), message("bc"), call('{"a": 1}')]
    assert whole["usage"]["output_tokens"] == len(f"a</think>bc{CALL}")

    def of(index: int) -> list[dict[str, Any]]:
        """What comes between the first and the last event of an item, without saying of which it is."""
        item = whole["output"][index]
        begins, *inner, ends = [event for event in middle if event["output_index"] == index]
        empty = {name: value for name, value in (("content", []), ("arguments", "")) if name in item}
        assert begins["type"] == "response.output_item.added"
        assert begins["item"] == item | empty | {"status": "in_progress"}
        assert (ends["type"], ends["item"]) == ("response.output_item.done", item)
        assert all(event["item_id"] == item["id"] and event.get("content_index", 0) == 0 for event in inner)
        place = ("sequence_number", "item_id", "output_index", "content_index")
        return [{name: value for name, value in event.items() if name not in place} for event in inner]

    part = {"type": "reasoning_text", "text": "a"}
    assert of(0) == [
        {"type": "response.content_part.added", "part": part | {"text": ""}},
        {"type": "response.reasoning_text.delta", "delta": "a"},
        {"type": "response.reasoning_text.done", "text": "a"},
        {"type": "response.content_part.done", "part": part},
    ]
    assert of(1) == [
        {"type": "response.content_part.added", "part": text_part("")},
        {"type": "response.output_text.delta", "delta": "b", "logprobs": []},
        {"type": "response.output_text.delta", "delta": "c", "logprobs": []},
        {"type": "response.output_text.done", "text": "bc", "logprobs": []},
        {"type": "response.content_part.done", "part": text_part("bc")},
    ]
    *deltas, done = of(2)
    assert {event["type"] for event in deltas} == {"response.function_call_arguments.delta"}
    assert "".join(event["delta"] for event in deltas) == '{"a": 1}'
    assert done == {"type": "response.function_call_arguments.done", "name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_gives_up_or_dies_is_an_error(chatty: Site, stream: bool) -> None:
    chatty.engine.script = lambda add: [Output(add.id, 0, [97]), Output(add.id, 0, [], FinishReason.ERROR)]
    response = await respond(chatty, stream=stream)
    if stream:
        last = named_events(response)[-1]
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"]["code"] == "server_error"
        assert "could not complete" in last["response"]["error"]["message"]
    else:
        assert response.status_code == 500
    chatty.bridge.fail(EngineDeadError("rank 1 of secret-host ended"))
    response = await respond(chatty, stream=stream)
    assert (response.status_code, "secret-host" in response.text) == (500, False)


@pytest.mark.parametrize(
    ("param", "body", "part"),
    [
        ("input", {"input": None}, "array"),
        ("input", {"input": []}, "at least 1"),
        ("input", {"input": [{"role": "user", "content": "x"}] * 65}, "65 messages"),
        ("input", {"input": "x" * 60}, "tokens"),
        ("input", {"input": "x" * 100}, "characters"),
        ("input.0", {"input": ["x"]}, "an object"),
        ("input.0", {"input": [{"content": "x"}]}, "a message needs role"),
        ("input.0", {"input": [{"type": "function_call", "name": "f"}]}, "needs call_id and arguments"),
        ("input.0.type", {"input": [{"type": "item_reference", "id": "i"}]}, "'function_call_output'"),
        ("input.0.content", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "'input_image'"),
        (
            "input.0.arguments",
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "["}]},
            "JSON object",
        ),
        ("previous_response_id", {"previous_response_id": "resp_1"}, "stores no responses"),
        ("conversation", {"conversation": "conv_1"}, "stores no responses"),
        ("background", {"background": True}, "not supported"),
        ("prompt", {"prompt": {"id": "p"}}, "not supported"),
        ("truncation", {"truncation": "auto"}, "not supported"),
        ("logprobs", {"logprobs": True}, "not supported"),
        ("top_logprobs", {"top_logprobs": 2}, "needs include to have message.output_text.logprobs"),
        ("top_logprobs", {"include": ["message.output_text.logprobs"], "top_logprobs": 21}, "between 0 and 20"),
        ("text.format", {"text": {"format": {"type": "xml"}}}, "must be text"),
        ("text.format.schema", {"text": {"format": {"type": "json_schema", "name": "a"}}}, "needs a schema"),
        (
            "response_format",
            {"response_format": {"type": "text"}, "text": {"format": {"type": "json_object"}}},
            "give only that one",
        ),
        ("text.format", {"text": {"format": {"type": "json_schema", "schema": {"type": "x"}}}}, "cannot be enforced"),
        ("max_tokens", {"max_tokens": 5}, "max_output_tokens"),
        ("max_output_tokens", {"max_output_tokens": 0}, "at least 1"),
        ("max_output_tokens", {"max_output_tokens": 65}, "64 tokens"),
        ("max_output_tokens", {"max_output_tokens": 58}, "at least 65 tokens"),
        ("n", {"n": 2}, "one answer"),
        ("tools.0.type", {"tools": [{"type": "web_search"}]}, "function"),
        ("tools.0.name", {"tools": [{"type": "function"}]}, "missing"),
        ("tool_choice", {"tools": [TOOL]}, "--enable-auto-tool-choice"),
        ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}}, "among the tools"),
        ("chat_template", {"chat_template": "{{ 1 }}"}, "--trust-request-chat-template"),
    ],
)
async def test_what_cannot_be_done_is_refused(chatty: Site, param: str, body: dict[str, Any], part: str) -> None:
    response = await respond(chatty, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], part in error["message"]) == (400, param, True), error
    assert not any(isinstance(each, Add) for each in chatty.engine.received)


async def test_what_asks_for_nothing_is_taken(chatty: Site) -> None:
    chatty.engine.script = answer("x")
    harmless = {
        "background": False,
        "include": ["reasoning.encrypted_content"],
        "previous_response_id": None,
        "service_tier": "auto",
        "store": False,
        "stream": False,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tools": [],
        "tool_choice": "none",
        "top_logprobs": 0,
        "truncation": "disabled",
    }
    assert (await respond(chatty, **harmless)).status_code == 200


async def test_what_a_template_raises_names_the_input(make_site: MakeSite) -> None:
    for template in ("{{ raise_exception('roles must alternate') }}", ""):
        site = await make_site(chat_config(chat_template=template))
        assert (await respond(site)).json()["error"]["param"] == "input"
