"""instructor: pydantic models out of chats. They need constrained output."""

from __future__ import annotations

import asyncio
from typing import Any

import instructor
import openai
from client_checks import PERSON, TIMEOUT_S, Person, Target, check, same


def asked(target: Target) -> dict[str, Any]:
    message = {"role": "user", "content": PERSON}
    shared = {"model": target.model, "response_model": Person, "temperature": 0, "max_tokens": 64, "max_retries": 1}
    return shared | {"messages": [message]}


def connect(target: Target, mode: instructor.Mode) -> instructor.Instructor:
    api = openai.OpenAI(base_url=target.base_url, timeout=TIMEOUT_S, max_retries=0)
    return instructor.from_openai(api, mode=mode)


@check("instructor", "a pydantic model by json_schema: whole, partial, async")
def by_schema(target: Target) -> None:
    client = connect(target, instructor.Mode.JSON_SCHEMA)
    whole = client.chat.completions.create(**asked(target))
    *_, last = client.chat.completions.create_partial(**asked(target))
    api = openai.AsyncOpenAI(base_url=target.base_url, timeout=TIMEOUT_S, max_retries=0)
    waited = asyncio.run(
        instructor.from_openai(api, mode=instructor.Mode.JSON_SCHEMA).chat.completions.create(**asked(target))
    )
    same(whole.model_dump(), last.model_dump(), waited.model_dump())


@check("instructor", "a pydantic model by a forced tool call")
def by_tools(target: Target) -> None:
    assert isinstance(connect(target, instructor.Mode.TOOLS).chat.completions.create(**asked(target)), Person)
