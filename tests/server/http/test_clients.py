"""Over a real socket: the openai package, and clients that hang up."""

from __future__ import annotations

import asyncio
import json

import openai
import pytest

from seesaw.engine.wire.messages import Abort, Add, FinishReason, Output
from tests.server.conftest import Line
from tests.server.fake_engine import answer

pytestmark = pytest.mark.anyio


def client(port: int) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)


async def test_the_openai_package(line: Line, port: int) -> None:
    line.engine.script = answer("a世b")
    async with client(port) as api:
        assert [model.id async for model in api.models.list()] == ["fake"]
        whole = await api.completions.create(model="fake", prompt="hello", n=2)
        assert [choice.text for choice in whole.choices] == ["a世b", "a世b"]
        assert whole.usage is not None and whole.usage.completion_tokens == 10
        stream = await api.completions.create(
            model="fake", prompt=[1, 2], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == "a世b"
        assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 7
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await api.completions.create(model="other", prompt="x")
        with pytest.raises(openai.BadRequestError) as refused:
            await api.completions.create(model="fake", prompt="x", suffix="y")
        assert refused.value.param == "suffix"


HELLO = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
CALL = b'<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


async def test_the_openai_package_chats(line: Line, port: int) -> None:
    line.engine.script = answer("a世b")
    async with client(port) as api:
        whole = await api.chat.completions.create(model="fake", messages=HELLO, n=2)
        assert [choice.message.content for choice in whole.choices] == ["a世b", "a世b"]
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage is not None and whole.usage.completion_tokens == 10
        async with api.chat.completions.stream(
            model="fake", messages=HELLO, stream_options={"include_usage": True}
        ) as stream:
            texts = [event.delta async for event in stream if event.type == "content.delta"]
            final = await stream.get_final_completion()
        assert "".join(texts) == final.choices[0].message.content == "a世b"
        assert final.choices[0].finish_reason == "stop"
        assert final.usage is not None and final.usage.total_tokens == 12
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await api.chat.completions.create(model="other", messages=HELLO)
        with pytest.raises(openai.BadRequestError) as refused:
            await api.chat.completions.create(model="fake", messages=HELLO, modalities=["audio"])
        assert refused.value.param == "modalities"


async def test_the_openai_package_calls_tools(line: Line, port: int) -> None:
    line.engine.script = lambda add: [
        Output(add.id, 0, [byte], FinishReason.STOP if at == len(CALL) - 1 else None) for at, byte in enumerate(CALL)
    ]
    async with client(port) as api:
        whole = await api.chat.completions.create(model="fake", messages=HELLO, tools=[TOOL])
        assert whole.choices[0].finish_reason == "tool_calls"
        async with api.chat.completions.stream(model="fake", messages=HELLO, tools=[TOOL]) as stream:
            streamed = await stream.get_final_completion()
        for message in (whole.choices[0].message, streamed.choices[0].message):
            assert message.tool_calls is not None
            (call,) = message.tool_calls
            assert (call.function.name, call.function.arguments) == ("f", '{"a": 1}')
            assert call.id.startswith("call_")
        line.engine.script = answer("done")
        result = {"role": "tool", "tool_call_id": call.id, "content": "3"}
        history = [*HELLO, message.model_dump(exclude_none=True), result]
        again = await api.chat.completions.create(model="fake", messages=history, tools=[TOOL])
        assert again.choices[0].message.content == "done"


FLAT_TOOL = {"type": "function", "name": "f", "parameters": TOOL["function"]["parameters"], "strict": True}


async def test_the_openai_package_responds(line: Line, port: int) -> None:
    line.engine.script = answer("a世b")
    async with client(port) as api:
        whole = await api.responses.create(model="fake", input="hi", instructions="be", store=False)
        assert (whole.status, whole.output_text) == ("completed", "a世b")
        assert whole.usage is not None and whole.usage.total_tokens == 17
        async with api.responses.stream(model="fake", input=[{"role": "user", "content": "hi"}]) as stream:
            texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            final = await stream.get_final_response()
        assert "".join(texts) == final.output_text == "a世b"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await api.responses.create(model="other", input="hi")
        with pytest.raises(openai.BadRequestError) as refused:
            await api.responses.create(model="fake", input="hi", previous_response_id=whole.id)
        assert refused.value.param == "previous_response_id"


async def test_the_openai_package_calls_tools_in_responses(line: Line, port: int) -> None:
    def script(add: Add) -> list[Output]:
        last = len(CALL) - 1
        return [Output(add.id, 0, [byte], FinishReason.STOP if at == last else None) for at, byte in enumerate(CALL)]

    line.engine.script = script
    async with client(port) as api:
        whole = await api.responses.create(model="fake", input="hi", tools=[FLAT_TOOL])
        async with api.responses.stream(model="fake", input="hi", tools=[FLAT_TOOL]) as stream:
            arguments = [e.delta async for e in stream if e.type == "response.function_call_arguments.delta"]
            streamed = await stream.get_final_response()
        assert "".join(arguments) == '{"a": 1}'
        for response in (whole, streamed):
            (call,) = response.output
            assert call.type == "function_call"
            assert (call.name, call.arguments) == ("f", '{"a": 1}')
        line.engine.script = answer("done")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "3"}
        history = [{"role": "user", "content": "hi"}, *(item.model_dump() for item in whole.output), result]
        again = await api.responses.create(model="fake", input=history, tools=[FLAT_TOOL])
        assert again.output_text == "done"


async def test_the_openai_package_without_asyncio(line: Line, port: int) -> None:
    line.engine.script = answer("a世b")

    def texts() -> list[str | None]:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as api:
            whole = api.chat.completions.create(model="fake", messages=HELLO)
            stream = api.chat.completions.create(model="fake", messages=HELLO, stream=True)
            deltas = [chunk.choices[0].delta.content or "" for chunk in stream]
            response = api.responses.create(model="fake", input="hi")
            events = api.responses.create(model="fake", input="hi", stream=True)
            pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
            return [whole.choices[0].message.content, "".join(deltas), response.output_text, "".join(pieces)]

    assert await asyncio.to_thread(texts) == ["a世b"] * 4


async def test_tokens_reach_the_client_as_they_come(line: Line, port: int) -> None:
    async with client(port) as api:
        stream = await api.completions.create(model="fake", prompt="x", stream=True)
        id = (await line.engine.expect(Add)).id
        for piece in ("one", "世", "three"):
            await line.engine.say(id, piece)
            assert (await anext(stream)).choices[0].text == piece
        await line.engine.say(id, "", FinishReason.LENGTH)
        assert (await anext(stream)).choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_tokens", [0, 1])
async def test_a_client_that_hangs_up_is_forgotten(line: Line, port: int, stream: bool, num_tokens: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"prompt": "x", "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    id = (await line.engine.expect(Add)).id
    for _ in range(num_tokens):
        await line.engine.say(id, "tick")
        if stream:
            await reader.readuntil(b"tick")
    writer.transport.abort()
    assert await line.engine.expect(Abort) == Abort(id)


async def test_hanging_up_during_one_request_leaves_the_others_alone(line: Line, port: int) -> None:
    async with client(port) as api:
        kept = asyncio.create_task(api.completions.create(model="fake", prompt="kept"))
        kept_id = (await line.engine.expect(Add)).id
        cut = await api.completions.create(model="fake", prompt="cut", stream=True)
        cut_id = (await line.engine.expect(Add)).id
        await cut.close()
        assert await line.engine.expect(Abort) == Abort(cut_id)
        await line.engine.say(kept_id, "fine", FinishReason.STOP)
        assert (await kept).choices[0].text == "fine"
