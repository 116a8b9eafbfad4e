"""langchain-openai: ChatOpenAI, of chats and of responses, and OpenAI."""

from __future__ import annotations

import asyncio
from typing import Any

from client_checks import (
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
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr


def connection(target: Target) -> dict[str, Any]:
    common = {"base_url": target.base_url, "api_key": SecretStr("none"), "timeout": TIMEOUT_S, "max_retries": 0}
    return common | {"model": target.model, "temperature": 0}


def chat_model(target: Target, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(**connection(target), **more)


@check("langchain", "ChatOpenAI: invoke, stream, ainvoke, batch; logprobs, usage")
def chats(target: Target) -> None:
    model = chat_model(target, max_tokens=TOKENS, logprobs=True, top_logprobs=2, stream_usage=True)
    whole = model.invoke(QUESTION)
    first, *others = model.stream(QUESTION)
    streamed = first
    for chunk in others:
        streamed += chunk
    several = [message.content for message in model.batch([QUESTION, QUESTION])]
    same(whole.content, streamed.content, asyncio.run(model.ainvoke(QUESTION)).content, *several)
    tokens = [
        [token["token"] for token in message.response_metadata["logprobs"]["content"]] for message in (whole, streamed)
    ]
    same(*tokens)
    assert whole.usage_metadata is not None and streamed.usage_metadata is not None
    same(whole.usage_metadata["output_tokens"], streamed.usage_metadata["output_tokens"], len(tokens[0]))
    same(whole.response_metadata["finish_reason"], "stop")


@check("langchain", "ChatOpenAI over responses: invoke, stream")
def responses(target: Target) -> None:
    model = chat_model(target, max_tokens=TOKENS, use_responses_api=True)
    same(model.invoke(QUESTION).text, "".join(chunk.text for chunk in model.stream(QUESTION)))


@check("langchain", "ChatOpenAI.bind_tools, auto: invoke, stream")
def tools(target: Target) -> None:
    model = chat_model(target, max_tokens=64).bind_tools([TOOL])
    first, *others = model.stream(weather_chat())
    streamed = first
    for chunk in others:
        streamed += chunk
    for message in (model.invoke(weather_chat()), streamed):
        [call] = message.tool_calls  # type: ignore[union-attr]
        is_weather_call(call["name"], call["args"])


@check("langchain", "OpenAI: invoke, stream, several prompts; logprobs")
def completions(target: Target) -> None:
    model = OpenAI(**connection(target), max_tokens=TOKENS, logprobs=2)
    both = model.generate([PROMPT, PROMPT])
    texts = [one.text for generations in both.generations for one in generations]
    same(model.invoke(PROMPT), "".join(model.stream(PROMPT)), *texts)
    logprobs = (both.generations[0][0].generation_info or {})["logprobs"]
    same("".join(logprobs["tokens"]), texts[0])


@check("langchain", "with_structured_output: json_schema of a model and as it is, function_calling")
def structured(target: Target) -> None:
    model = chat_model(target, max_tokens=64)
    for method in ("json_schema", "function_calling"):
        answer = model.with_structured_output(Person, method=method).invoke(PERSON)  # type: ignore[arg-type]
        assert isinstance(answer, Person), answer
    schema = model.with_structured_output(Person.model_json_schema(), method="json_schema").invoke(PERSON)
    assert isinstance(schema, dict) and schema.keys() == {"name", "age"}, schema
