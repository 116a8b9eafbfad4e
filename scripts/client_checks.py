"""What the checks of clients share: the list that they are on, the server they go to, and what they ask it.

`check_clients.py` runs those that the `check_clients_*.py` put on the list.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel

TIMEOUT_S = 120.0
TOKENS = 16  # the answer to MESSAGES is shorter, that to PROMPT longer

PROMPT = "The capital of France is"
QUESTION = "What is the capital of France?"
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "The weather in a city", "parameters": WEATHER}
TOOL: Any = {"type": "function", "function": FUNCTION}
ASKED_CITY = "London"
PERSON = "Alice is 31 years old."


class Person(BaseModel):  # what PERSON is about; a docstring would be a part of the schemas that clients make of it
    name: str
    age: int


@dataclass(frozen=True)
class Target:
    """The server, and the checkpoint that it serves."""

    url: str
    model: str
    folder: Path

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


class Check(NamedTuple):
    """`run` raises what it finds wrong."""

    client: str
    what: str
    run: Callable[[Target], object]


CHECKS: list[Check] = []


def check(client: str, what: str) -> Callable[[Callable[[Target], object]], None]:
    """Put a function on the list."""
    return lambda run: CHECKS.append(Check(client, what, run))


def same(*values: Any) -> None:
    """All of them are, and there is something of them."""
    assert values[0], f"nothing came: {values[0]!r}"
    assert all(value == values[0] for value in values), f"not the same: {values}"


def weather_chat() -> list[Any]:
    """Asks for a call. Without examples so small a model talks about the weather instead."""
    messages: list[Any] = []
    for number, city in enumerate(("Paris", "Rome")):
        call = {"name": FUNCTION["name"], "arguments": json.dumps({"city": city})}
        messages += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": f"call_{number}", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": f"call_{number}", "content": "Sunny"},
            {"role": "assistant", "content": "It is sunny."},
        ]
    return [*messages, {"role": "user", "content": f"What is the weather in {ASKED_CITY}?"}]


def is_weather_call(name: str, arguments: str | dict[str, Any]) -> None:
    """A call of the tool for the city that `weather_chat` asks of."""
    given = json.loads(arguments) if isinstance(arguments, str) else arguments
    same((name, given), (FUNCTION["name"], {"city": ASKED_CITY}))
