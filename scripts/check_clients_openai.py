"""The openai package: sync, async and streams, of all three endpoints."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
from client_checks import (
    ASKED_CITY,
    FUNCTION,
    MESSAGES,
    PERSON,
    PROMPT,
    QUESTION,
    TIMEOUT_S,
    TOKENS,
    TOOL,
    Person,
    Target,
    check,
    is_weather_call,
    same,
    weather_chat,
)


def connect(target: Target) -> openai.OpenAI:
    return openai.OpenAI(base_url=target.base_url, timeout=TIMEOUT_S, max_retries=0)


def options(target: Target, **more: Any) -> dict[str, Any]:
    return {"model": target.model, "temperature": 0, **more}


@check("openai", "completions: whole, streamed, async; list of prompts; usage")
def completions(target: Target) -> None:
    asked = options(target, prompt=PROMPT, max_tokens=TOKENS)

    async def by_async() -> list[str]:
        async with openai.AsyncOpenAI(base_url=target.base_url, timeout=TIMEOUT_S, max_retries=0) as api:
            whole = await api.completions.create(**asked)
            stream = await api.completions.create(**asked, stream=True)
            return [whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])]

    with connect(target) as api:
        assert [model.id for model in api.models.list()] == [target.model]
        whole = api.completions.create(**asked)
        chunks = list(api.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        both = api.completions.create(**asked | {"prompt": [PROMPT, PROMPT]})
    same(whole.choices[0].text, streamed, *asyncio.run(by_async()), *(choice.text for choice in both.choices))
    assert whole.choices[0].text.startswith(" Paris"), whole.choices[0].text
    assert whole.usage is not None and whole.usage.completion_tokens == TOKENS
    told = [usage and usage.model_dump(exclude={"prompt_tokens_details"}) for usage in (chunks[-1].usage, whole.usage)]
    same(*told)  # more may be cached the second time


@check("openai", "completions: echo and logprobs, with max_tokens=0 and with an answer")
def echoed(target: Target) -> None:
    with connect(target) as api:
        scored = api.completions.create(**options(target, prompt=PROMPT, max_tokens=0, echo=True, logprobs=3))
        answered = api.completions.create(**options(target, prompt=PROMPT, max_tokens=4, echo=True, logprobs=3))
        stream = api.completions.create(**options(target, prompt=PROMPT, max_tokens=4, logprobs=3, stream=True))
        streamed = [chunk.choices[0] for chunk in stream]
    same(scored.choices[0].text, PROMPT)
    assert scored.usage is not None and scored.usage.completion_tokens == 0
    prompt, both = scored.choices[0].logprobs, answered.choices[0].logprobs
    assert prompt is not None and prompt.tokens and prompt.token_logprobs and prompt.top_logprobs
    assert both is not None and both.tokens and both.token_logprobs and both.top_logprobs and both.text_offset
    same("".join(prompt.tokens), PROMPT)
    same("".join(both.tokens), answered.choices[0].text)
    assert prompt.token_logprobs[0] is None and all(value <= 0 for value in prompt.token_logprobs[1:])
    count = len(prompt.tokens)
    assert all(
        abs(one - other) < 1e-3
        for one, other in zip(prompt.token_logprobs[1:], both.token_logprobs[1:count], strict=True)
    )
    for token, offset in zip(both.tokens, both.text_offset, strict=True):
        assert answered.choices[0].text[offset:].startswith(token), (token, offset)
    for token, top in zip(both.tokens[count:], both.top_logprobs[count:], strict=True):
        same(token, max(top, key=top.__getitem__))
    same(
        [token for choice in streamed if choice.logprobs for token in choice.logprobs.tokens or ()], both.tokens[count:]
    )


@check("openai", "chats: whole, streamed, the stream helper, async; logprobs and top_logprobs")
def chats(target: Target) -> None:
    asked = options(target, messages=MESSAGES, max_completion_tokens=TOKENS, logprobs=True, top_logprobs=3)

    async def by_async() -> str | None:
        async with openai.AsyncOpenAI(base_url=target.base_url, timeout=TIMEOUT_S, max_retries=0) as api:
            whole = await api.chat.completions.create(**asked)
            return whole.choices[0].message.content

    with connect(target) as api:
        whole = api.chat.completions.create(**asked)
        choice = whole.choices[0]
        chunks = [chunk.choices[0] for chunk in api.chat.completions.create(**asked, stream=True)]
        with api.chat.completions.stream(**asked) as stream:
            final = stream.get_final_completion().choices[0]
    streamed = "".join(chunk.delta.content or "" for chunk in chunks)
    same(choice.message.content, streamed, final.message.content, asyncio.run(by_async()))
    assert choice.logprobs is not None and choice.logprobs.content and final.logprobs is not None
    tokens = choice.logprobs.content
    assert whole.usage is not None and choice.finish_reason == "stop"
    same(len(tokens), whole.usage.completion_tokens)
    for token in tokens:
        assert len(token.top_logprobs) == 3
        same((token.token, token.logprob), (token.top_logprobs[0].token, token.top_logprobs[0].logprob))
    said = b"".join(bytes(token.bytes or ()) for token in tokens).decode(errors="replace")
    assert said.startswith(choice.message.content or "-"), said
    pieces = [token.token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content or ()]
    same([token.token for token in tokens], pieces, [token.token for token in final.logprobs.content or ()])


@check("openai", "sampling: n, seed, stop, logit_bias and penalties do what they say")
def sampling(target: Target) -> None:
    with connect(target) as api:

        def texts(**more: Any) -> list[str]:
            answer = api.completions.create(**options(target, prompt=PROMPT, max_tokens=TOKENS) | more)
            return [choice.text for choice in answer.choices]

        same(*(texts(n=3, temperature=1.0, seed=7) for _ in range(2)))
        assert len(set(texts(n=3, temperature=1.0, seed=7))) == 3
        same(texts(stop=["."]), [texts()[0].partition(".")[0]])
        assert texts(frequency_penalty=2.0, presence_penalty=2.0) != texts()
        # Of " Paris", which is what the model says.
        [token] = (
            api.completions.create(
                **options(target, prompt=PROMPT, max_tokens=1), extra_body={"return_token_ids": True}
            )
            .choices[0]
            .model_extra["token_ids"]
        )  # type: ignore[index]
        assert "Paris" not in texts(logit_bias={str(token): -100}, max_tokens=1)[0]


@check("openai", "tools, auto: whole and by the stream helper; the result goes back")
def tools(target: Target) -> None:
    asked = options(target, messages=weather_chat(), tools=[TOOL], tool_choice="auto", max_completion_tokens=64)
    with connect(target) as api:
        choice = api.chat.completions.create(**asked).choices[0]
        with api.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0]
        for one in (choice, streamed):
            assert one.finish_reason == "tool_calls" and one.message.tool_calls, one
            [call] = one.message.tool_calls
            assert call.type == "function"
            is_weather_call(call.function.name, call.function.arguments)
        assert choice.message.tool_calls
        result = {"role": "tool", "tool_call_id": choice.message.tool_calls[0].id, "content": "Rainy"}
        asked["messages"] = [*weather_chat(), choice.message, result]
        assert api.chat.completions.create(**asked).choices[0].message.content


@check("openai", "responses: create, stream, async")
def responses(target: Target) -> None:
    asked = options(target, input=QUESTION, max_output_tokens=TOKENS)

    async def by_async() -> str:
        async with openai.AsyncOpenAI(base_url=target.base_url, timeout=TIMEOUT_S, max_retries=0) as api:
            return (await api.responses.create(**asked)).output_text

    with connect(target) as api:
        whole = api.responses.create(**asked)
        events = list(api.responses.create(**asked, stream=True))
        with api.responses.stream(**asked) as stream:
            final = stream.get_final_response()
        chat = api.chat.completions.create(**options(target, messages=MESSAGES, max_completion_tokens=TOKENS))
    streamed = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    same(whole.output_text, streamed, final.output_text, asyncio.run(by_async()), chat.choices[0].message.content)
    same(whole.status, "completed", final.status)


@check("openai", "responses: tools, auto; the result goes back")
def responses_tools(target: Target) -> None:
    history: list[Any] = []
    for message in weather_chat():
        for call in message.get("tool_calls", ()):
            history.append({"type": "function_call", "call_id": call["id"], **call["function"]})
        if message["role"] == "tool":
            history.append(
                {"type": "function_call_output", "call_id": message["tool_call_id"], "output": message["content"]}
            )
        elif message["content"]:
            history.append(message)
    asked = options(target, tools=[{"type": "function", **FUNCTION}], max_output_tokens=64)
    with connect(target) as api:
        answer = api.responses.create(**asked, input=history)
        [call] = answer.output
        assert call.type == "function_call", call
        is_weather_call(call.name, call.arguments)
        history += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "Rainy"}]
        assert api.responses.create(**asked, input=history).output_text


@check("openai", "errors: its own exceptions, which name the parameter")
def errors(target: Target) -> None:
    with connect(target) as api:
        for wrong, expected, param in (
            ({"model": "other"}, openai.NotFoundError, "model"),
            ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
            ({"temperature": -1}, openai.BadRequestError, "temperature"),
        ):
            try:
                api.completions.create(**options(target, prompt=PROMPT) | wrong)
            except expected as error:
                same(error.param, param)
            else:
                raise AssertionError(f"{wrong} was taken")


@check("openai", "structured outputs: chats.parse whole and streamed, responses.parse")
def structured(target: Target) -> None:
    messages: list[Any] = [{"role": "user", "content": PERSON}]
    with connect(target) as api:
        asked = options(target, messages=messages, response_format=Person, max_completion_tokens=64)
        whole = api.chat.completions.parse(**asked).choices[0].message.parsed
        with api.chat.completions.stream(**asked) as stream:
            streamed = stream.get_final_completion().choices[0].message.parsed
        response = api.responses.parse(**options(target, input=messages, text_format=Person, max_output_tokens=64))
    same(whole, streamed, response.output_parsed)
    assert isinstance(whole, Person)


@check("openai", "json_object; tools, required and named")
def forced(target: Target) -> None:
    messages: list[Any] = [{"role": "user", "content": f"What is the weather in {ASKED_CITY}? Answer in JSON."}]
    with connect(target) as api:
        asked = options(target, messages=messages, max_completion_tokens=64)
        choices: list[Any] = ["required", {"type": "function", "function": {"name": FUNCTION["name"]}}]
        for choice in choices:
            message = api.chat.completions.create(**asked, tools=[TOOL], tool_choice=choice).choices[0].message
            assert message.tool_calls
            assert message.tool_calls[0].type == "function"
            same(message.tool_calls[0].function.name, FUNCTION["name"])
            assert json.loads(message.tool_calls[0].function.arguments).keys() == {"city"}
        content = api.chat.completions.create(**asked, response_format={"type": "json_object"}).choices[0]
        assert content.finish_reason == "length" or isinstance(json.loads(content.message.content or ""), dict)
