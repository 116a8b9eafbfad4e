"""`/v1/chat/completions` in process: what becomes of messages, and what clients get."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from seesaw.engine.sampling.defaults import SamplingDefaults
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import Abort, Add, FinishReason, Output
from seesaw.server.openai.protocol.generation import _told
from tests.server.conftest import MakeSite, Site, chat_config
from tests.server.fake_engine import INFO, Script, answer
from tests.server.openai.streams import events, usage

pytestmark = pytest.mark.anyio

USER = {"role": "user", "content": "hi"}


@pytest.fixture
async def chatty(make_site: MakeSite) -> Site:
    return await make_site(chat_config())


def say(*pieces: str, finish: FinishReason = FinishReason.STOP) -> Script:
    """Every sequence says these pieces, each in one output."""

    def script(add: Add) -> list[Output]:
        return [
            Output(add.id, index, list(piece.encode()), finish if at == len(pieces) - 1 else None)
            for at, piece in enumerate(pieces)
            for index in range(add.sampling.n)
        ]

    return script


async def prompt_of(site: Site, *messages: object, **body: object) -> str:
    """The prompt that reaches the engine."""
    site.engine.script = say("x")
    response = await site.chat(*messages, **body)
    assert response.status_code == 200, response.text
    return bytes((await site.engine.expect(Add)).prompt).decode()


F = {"type": "function", "function": {"name": "f"}}


async def refused(site: Site, param: str | None, *messages: object, **body: Any) -> str:
    """The message of a request that must be refused before it reaches the engine."""
    response = await site.chat(*messages, **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "BadRequestError"), error
    assert not any(isinstance(message, Add) for message in site.engine.received)
    return str(error["message"])


async def test_a_whole_answer(chatty: Site) -> None:
    chatty.engine.script = answer("héllo")
    response = await chatty.chat(USER, model="fake")
    body = response.json()
    assert (response.status_code, body["object"], body["model"]) == (200, "chat.completion", "fake")
    assert body["id"].startswith("chatcmpl-")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "héllo", "refusal": None},
            "finish_reason": "stop",
            "stop_reason": None,
            "logprobs": None,
        }
    ]
    assert body["usage"] == usage(7, 6)


async def test_defaults_are_openais_and_null_means_default(chatty: Site) -> None:
    chatty.engine.script = say("x")
    names = ("max_tokens", "max_completion_tokens", "temperature", "top_p", "n", "stop", "seed", "stream", "tools")
    for body in ({}, dict.fromkeys((*names, "tool_choice", "model", "add_generation_prompt", "chat_template_kwargs"))):
        assert (await chatty.chat(**body)).status_code == 200
        assert (await chatty.engine.expect(Add)).sampling == SamplingParams(max_tokens=INFO.max_model_len - 7)


async def test_sampling_reaches_the_engine(chatty: Site) -> None:
    chatty.engine.script = say("x")
    wanted = SamplingParams(
        max_tokens=7, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=3, n=2, ignore_eos=True, stop_token_ids=(4,)
    )
    body = {name: getattr(wanted, name) for name in wanted.__struct_fields__ if name != "ends_after"}
    assert (await chatty.chat(**body, max_completion_tokens=7, user="me", metadata={"a": "b"})).status_code == 200
    assert (await chatty.engine.expect(Add)).sampling == wanted
    await chatty.chat(max_tokens=9, max_completion_tokens=5)
    assert (await chatty.engine.expect(Add)).sampling.max_tokens == 5


async def test_the_checkpoints_defaults_are_for_what_is_left_out(make_site: MakeSite) -> None:
    site = await make_site(chat_config(), defaults=SamplingDefaults({"temperature": 0.6, "top_p": 0.9}, 20))
    site.engine.script = say("x")
    expected = SamplingParams(temperature=0.6, top_p=0.9, max_tokens=20)
    await site.chat()
    assert (await site.engine.expect(Add)).sampling == expected
    await site.chat(temperature=0, top_p=None, max_tokens=30, ignore_eos=True)
    assert (await site.engine.expect(Add)).sampling == SamplingParams(
        temperature=0.0, top_p=0.9, max_tokens=20, ignore_eos=True
    )
    await site.complete(prompt="x")
    assert (await site.engine.expect(Add)).sampling == SamplingParams(temperature=0.6, top_p=0.9, max_tokens=16)


async def test_an_end_by_the_checkpoints_own_token_is_no_stop_of_the_clients(chatty: Site) -> None:
    chatty.engine.script = lambda add: [Output(add.id, 0, list(b"ok$"), FinishReason.STOP, stop_token=36)]
    choice = (await chatty.chat()).json()["choices"][0]
    assert (choice["message"]["content"], choice["stop_reason"]) == ("ok", None)
    choice = (await chatty.chat(stop_token_ids=[36])).json()["choices"][0]
    assert choice["stop_reason"] == 36


async def test_messages_of_all_kinds_are_rendered(chatty: Site) -> None:
    parts = [{"type": "text", "text": "b"}, "c", {"type": "input_text", "text": "d"}]
    system = {"role": "developer", "content": "a", "name": "n"}
    assert await prompt_of(chatty, system, {"role": "user", "content": parts}) == "d:a;u:b\nc\nd;a:"
    assistant = {"role": "assistant", "content": None}
    assert await prompt_of(chatty, USER, assistant, {"role": "tool", "content": "1", "tool_call_id": "c"}) == (
        "u:hi;a:;t:1;a:"
    )


async def test_continuing_a_message_and_beginning_none(chatty: Site) -> None:
    begun = {"role": "assistant", "content": "I am"}
    for body in ({}, {"add_generation_prompt": False}):
        assert await prompt_of(chatty, USER, begun, continue_final_message=True, **body) == "u:hi;a:I am"
    assert await prompt_of(chatty, USER, begun, add_generation_prompt=False) == "u:hi;a:I am;"
    chatty.engine.script = say(" here")
    for stream in (False, True):
        response = await chatty.chat(USER, begun, continue_final_message=True, echo=True, stream=stream)
        if stream:
            deltas = [event["choices"][0]["delta"] for event in events(response)]
            assert "".join(delta.get("content", "") for delta in deltas) == "I am here"
        else:
            assert response.json()["choices"][0]["message"]["content"] == "I am here"
    response = await chatty.chat(USER, echo=True)
    assert response.json()["choices"][0]["message"]["content"] == " here"
    response = await chatty.chat(USER, add_generation_prompt=False)
    assert response.json()["choices"][0]["message"]["role"] == "user"


HISTORY = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.arguments.a }}{{ c.id }}{% endfor %}"
    "{{ m.tool_call_id }}{{ m.reasoning_content }}{% endfor %}{{ tools|length }}{{ tools[0].function.name }}"
)


async def test_templates_get_tools_and_the_history_of_calls(make_site: MakeSite) -> None:
    site = await make_site(chat_config(chat_template=HISTORY, enable_auto_tool_choice=True, tool_call_parser="hermes"))
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": "A"}'}}
    messages = (
        {"role": "assistant", "tool_calls": [call], "reasoning": "R"},
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
    )
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
    assert await prompt_of(site, *messages, tools=[tool]) == "Ac1Rc11f"
    assert await prompt_of(site, *messages, tools=[tool], tool_choice="none") == "Ac1Rc11f"


async def test_templates_get_their_variables(make_site: MakeSite) -> None:
    template = "{{ a }}{{ reasoning_effort }}{{ documents[0].text }}"
    site = await make_site(chat_config(chat_template=template))
    options = {"chat_template_kwargs": {"a": "A"}, "reasoning_effort": "low", "documents": [{"text": "D"}]}
    assert await prompt_of(site, **options) == "AlowD"


async def test_a_clients_template_is_taken_only_where_the_operator_says_so(make_site: MakeSite) -> None:
    site = await make_site(chat_config())
    assert "--trust-request-chat-template" in await refused(site, "chat_template", chat_template="{{ 1 }}")
    site = await make_site(chat_config(trust_request_chat_template=True))
    for broken in ("{% if %}", "{{ messages[0].content + 1 }}", "{{ unheard_of.x }}"):
        assert "fails on these messages" in await refused(site, "chat_template", chat_template=broken)
    assert "alternate" in await refused(site, "messages", chat_template="{{ raise_exception('must alternate') }}")
    assert await prompt_of(site, chat_template="<{{ messages|length }}>") == "<1>"


async def test_what_a_template_raises_is_the_clients_to_mend(make_site: MakeSite) -> None:
    site = await make_site(chat_config(chat_template="{{ raise_exception('roles must alternate') }}"))
    assert "roles must alternate" in await refused(site, "messages")
    site = await make_site(chat_config(chat_template="{{ messages[0].content + 1 }}"))
    assert "cannot render these messages" in await refused(site, "messages")
    site = await make_site()
    message = await refused(site, "messages")
    assert "no chat template" in message and "--chat-template" in message


@pytest.mark.parametrize(
    ("param", "body", "part"),
    [
        ("messages", {"messages": []}, "at least 1"),
        ("messages", {"messages": "hi"}, "array"),
        ("messages", {"messages": [USER] * 65}, "65 messages"),
        ("messages", {"messages": [USER | {"content": "x" * 60}]}, "characters, which do not fit"),
        ("messages.0.role", {"messages": [{"content": "x"}]}, "missing"),
        ("messages.0.role", {"messages": [USER | {"role": ""}]}, "at least 1"),
        ("messages.0.content", {"messages": [{"role": "user"}]}, "missing"),
        ("messages.0.content", {"messages": [USER | {"content": 5}]}, "string or a list"),
        ("messages.1.content", {"messages": [USER, USER | {"content": [{"type": "image_url"}]}]}, "'image_url'"),
        ("messages.0.content", {"messages": [USER | {"content": [{"type": "text"}]}]}, "string as its text"),
        ("messages.0.content", {"messages": [USER | {"content": [5]}]}, "object with a type"),
        (
            "messages.0.tool_calls.0.function.arguments",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]},
            "JSON object",
        ),
        (
            "messages.0.tool_calls.0.function.arguments",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[" * 9999}}]}]},
            "JSON object",
        ),
        ("messages.0.function_call", {"messages": [USER | {"function_call": {"name": "f"}}]}, "use tool_calls"),
        ("max_completion_tokens", {"max_completion_tokens": 0}, "at least 1"),
        ("max_completion_tokens", {"max_completion_tokens": 65}, "64 tokens"),
        ("max_tokens", {"max_tokens": 65}, "64 tokens"),
        ("max_tokens", {"max_tokens": 58}, "maximum context length is 64 tokens"),
        ("max_completion_tokens", {"max_completion_tokens": 58}, "at least 65 tokens"),
        ("n", {"n": 101}, "101 sequences"),
        ("continue_final_message", {"continue_final_message": True, "add_generation_prompt": True}, "both"),
        ("chat_template_kwargs", {"chat_template_kwargs": {"tokenize": True}}, "'tokenize'"),
        ("chat_template_kwargs", {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "'chat_template'"),
        ("top_logprobs", {"top_logprobs": 2}, "logprobs to be true"),
        ("top_logprobs", {"top_logprobs": 21, "logprobs": True}, "between 0 and 20"),
        ("prompt_logprobs", {"prompt_logprobs": 21}, "between 0 and 20"),
        ("response_format", {"response_format": {"type": "xml"}}, "must be text, json_object or json_schema"),
        ("structured_outputs", {"structured_outputs": {"regex": "a{2"}}, "cannot be enforced"),
        ("functions", {"functions": [{"name": "f"}]}, "not supported"),
        ("modalities", {"modalities": ["text", "audio"]}, "not supported"),
        ("stream_options", {"stream_options": {}}, "needs stream"),
        ("tool_choice", {"tools": [{"function": {"name": "f"}}]}, "--enable-auto-tool-choice"),
        ("tool_choice", {"tool_choice": "auto"}, "needs tools"),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": "function"}}, "must be auto"),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "must be auto"),
        ("tool_choice", {"tools": [F], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "among the"),
        ("tool_choice", {"tools": [F], "tool_choice": "required", "guided_regex": "a"}, "exclude one another"),
        (
            "tools",
            {"tools": [F | {"function": {"name": "f", "parameters": {"type": "x"}}}], "tool_choice": "required"},
            "object",
        ),
        ("tool_choice", {"tool_choice": "sometimes"}, "must be auto"),
        ("tools.0.function.name", {"tools": [{"function": {}}]}, "missing"),
        ("tools.0.type", {"tools": [{"type": "custom", "function": {"name": "f"}}]}, "function"),
    ],
)
async def test_what_cannot_be_done_is_refused(chatty: Site, param: str, body: dict[str, Any], part: str) -> None:
    assert part in await refused(chatty, param, **body)


async def test_unsupported_parameters_may_have_their_default(chatty: Site) -> None:
    chatty.engine.script = say("x")
    harmless = {
        "logprobs": False,
        "top_logprobs": None,
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "modalities": ["text"],
        "functions": None,
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "store": False,
        "service_tier": "auto",
        "something_new": 5,
    }
    assert (await chatty.chat(**harmless)).status_code == 200


async def test_what_is_ignored_is_logged_once(chatty: Site, caplog: pytest.LogCaptureFixture) -> None:
    chatty.engine.script = say("x")
    caplog.set_level(logging.INFO)
    _told.clear()
    for _ in range(2):
        await chatty.chat(user="me", something_new=5, frequency_penalty=0)
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("seesaw.server.openai")]
    assert lines == [
        "requests hold the parameter 'user', which is accepted and has no effect here",
        "requests hold the parameter 'something_new', which Seesaw does not know and ignores",
    ]


async def test_a_stream_is_as_openais(chatty: Site) -> None:
    chatty.engine.script = answer("a世")
    got = events(await chatty.chat(stream=True, n=2))
    assert {event["object"] for event in got} == {"chat.completion.chunk"}
    assert len({event["id"] for event in got}) == len({event["created"] for event in got}) == 1
    assert not any("usage" in event for event in got)
    for index in range(2):
        first, *middle, last = [event["choices"][0] for event in got if event["choices"][0]["index"] == index]
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert [choice["delta"] for choice in middle] == [{"content": "a"}, {"content": "世"}]
        assert [choice["finish_reason"] for choice in (first, *middle)] == [None] * 3
        assert (last["delta"], last["finish_reason"], last["stop_reason"]) == ({}, "stop", None)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_salt_and_what_was_cached(chatty: Site, n: int) -> None:
    chatty.engine.script = answer("a")
    chatty.engine.num_cached_tokens = 4
    assert (await chatty.chat(cache_salt="mine", n=n)).json()["usage"] == usage(7, n, cached_tokens=4)
    assert (await chatty.engine.expect(Add)).cache_salt == "mine"
    assert (await chatty.chat(cache_salt="")).json()["error"]["param"] == "cache_salt"


async def test_nothing_is_sent_before_the_first_token(chatty: Site) -> None:
    chatty.engine.script = lambda add: [Output(add.id, 0, [], FinishReason.ERROR)]
    (error,) = [event for event in events(await chatty.chat(stream=True)) if "error" in event]
    assert error["error"]["code"] == 500


async def test_usage_comes_last_and_with_each_chunk_if_asked_for(chatty: Site) -> None:
    chatty.engine.script = say("a", "b")
    chatty.engine.num_cached_tokens = 5
    told = usage(7, 2, cached_tokens=5)
    options = {"include_usage": True}
    got = events(await chatty.chat(stream=True, stream_options=options))
    assert (got[-1]["choices"], got[-1]["usage"]) == ([], told)
    assert all("usage" not in event for event in got[:-1])
    options["continuous_usage_stats"] = True
    got = events(await chatty.chat(stream=True, stream_options=options))
    assert [event["usage"]["prompt_tokens"] for event in got] == [7] * len(got)
    assert got[-2]["usage"] == told


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_an_answer_and_abort_it(chatty: Site, stream: bool) -> None:
    chatty.engine.script = lambda add: [Output(add.id, 0, list(b"one. two. "))]  # and it would go on
    response = await chatty.chat(stop=["x", ". t"], stream=stream)
    if stream:
        choices = [event["choices"][0] for event in events(response)]
        text, last = "".join(choice["delta"].get("content", "") for choice in choices), choices[-1]
    else:
        last = response.json()["choices"][0]
        text = last["message"]["content"]
    assert (text, last["finish_reason"], last["stop_reason"]) == ("one", "stop", ". t")
    add = await chatty.engine.expect(Add)
    assert await chatty.engine.expect(Abort) == Abort(add.id)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_that_dies_or_gives_up_is_an_error(chatty: Site, stream: bool) -> None:
    chatty.engine.script = lambda add: [Output(add.id, 0, [97]), Output(add.id, 0, [], FinishReason.ERROR)]
    response = await chatty.chat(stream=stream)
    if stream:
        *before, last = events(response)
        assert "".join(event["choices"][0]["delta"].get("content", "") for event in before) in ("", "a")
        assert last["error"]["code"] == 500
    else:
        assert response.status_code == 500
    chatty.bridge.fail(EngineDeadError("rank 1 of secret-host ended"))
    response = await chatty.chat(stream=stream)
    assert (response.status_code, "secret-host" in response.text) == (500, False)


async def test_json_that_is_nested_too_deep(chatty: Site) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    for body in (
        f'{{"messages": {deep}}}',
        f'{{"messages": [{{"role": "user", "content": "x"}}], "metadata": {deep}}}',
    ):
        response = await chatty.client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        assert (response.status_code, response.json()["error"]["code"]) == (400, 400)


def of_asked(site: Site) -> StructuredOutputs | None:
    """The form that the engine was last asked for."""
    return [message for message in site.engine.received if isinstance(message, Add)][-1].sampling.structured_outputs


async def test_a_form_reaches_the_engine(chatty: Site) -> None:
    chatty.engine.script = say("{}")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert (await chatty.chat(USER, response_format=wanted)).status_code == 200
    form = of_asked(chatty)
    assert form is not None and form.kind == "json_schema" and json.loads(form.text) == schema
    assert (await chatty.chat(USER, structured_outputs={"choice": ["a", "b"]})).status_code == 200
    assert of_asked(chatty) == StructuredOutputs("choice", choices=("a", "b"))
    assert (await chatty.chat(USER, response_format={"type": "text"})).status_code == 200
    assert of_asked(chatty) is None


@pytest.mark.parametrize(
    ("choice", "finish"), [("required", "tool_calls"), ({"type": "function", "function": {"name": "f"}}, "stop")]
)
async def test_a_call_may_be_forced_without_a_parser_of_the_operators(
    chatty: Site, choice: object, finish: str
) -> None:
    call = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    chatty.engine.script = say(call)
    answer = (await chatty.chat(USER, tools=[F], tool_choice=choice)).json()["choices"][0]
    form = of_asked(chatty)
    assert form is not None and form.kind == "grammar" and "tool_call" in form.text
    [called] = answer["message"]["tool_calls"]
    assert called["function"] == {"name": "f", "arguments": "{}"}
    assert answer["finish_reason"] == finish
