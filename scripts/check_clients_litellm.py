"""litellm: its openai provider, its hosted_vllm one, and completions of texts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import litellm
from client_checks import (
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

litellm.telemetry = False
litellm.suppress_debug_info = True  # it prints hints to stdout


def options(target: Target, provider: str, **more: Any) -> dict[str, Any]:
    common = {"api_base": target.base_url, "api_key": "none", "timeout": TIMEOUT_S, "num_retries": 0, "temperature": 0}
    return common | {"model": f"{provider}/{target.model}"} | more


@check("litellm", "completion: whole, streamed, async, by two providers; logprobs")
def chats(target: Target) -> None:
    texts: list[str] = []
    for provider in ("openai", "hosted_vllm"):
        asked = options(target, provider, messages=MESSAGES, max_tokens=TOKENS)
        whole = litellm.completion(**asked, logprobs=True, top_logprobs=2)
        tokens = whole.choices[0].logprobs.content
        same(len(tokens), whole.usage.completion_tokens)
        chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
        same(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        texts += ["".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)]
        texts.append(whole.choices[0].message.content)
        texts.append(asyncio.run(litellm.acompletion(**asked)).choices[0].message.content)
    same(*texts)


@check("litellm", "text_completion: whole, streamed; logprobs")
def completions(target: Target) -> None:
    asked = options(target, "text-completion-openai", prompt=PROMPT, max_tokens=TOKENS)
    whole = litellm.text_completion(**asked, logprobs=2)
    streamed = "".join(chunk.choices[0].text or "" for chunk in litellm.text_completion(**asked, stream=True))
    same(whole.choices[0].text, streamed, "".join(whole.choices[0].logprobs.tokens))


@check("litellm", "completion: tools, auto, whole and streamed")
def tools(target: Target) -> None:
    asked = options(target, "openai", messages=weather_chat(), tools=[TOOL], tool_choice="auto", max_tokens=64)
    chunks = list(litellm.completion(**asked, stream=True))
    for answer in (litellm.completion(**asked), litellm.stream_chunk_builder(chunks)):
        [call] = answer.choices[0].message.tool_calls
        is_weather_call(call.function.name, call.function.arguments)


@check("litellm", "responses: whole, streamed")
def responses(target: Target) -> None:
    asked = options(target, "openai", input=QUESTION, max_output_tokens=TOKENS)
    whole = litellm.responses(**asked)
    events = litellm.responses(**asked, stream=True)
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    same(whole.output[0].content[0].text, "".join(deltas))


@check("litellm", "response_format of a model; a forced call")
def structured(target: Target) -> None:
    asked = options(target, "openai", messages=[{"role": "user", "content": PERSON}], max_tokens=64)
    answer = litellm.completion(**asked, response_format=Person)
    assert Person.model_validate_json(answer.choices[0].message.content)
    choice = {"type": "function", "function": {"name": FUNCTION["name"]}}
    [call] = litellm.completion(**asked, tools=[TOOL], tool_choice=choice).choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"city"}
