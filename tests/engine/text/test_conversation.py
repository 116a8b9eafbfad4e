"""What templates get of the messages that clients write."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.engine.text.conversation import template_messages
from seesaw.engine.values.errors import RequestError


def test_parts_become_one_text_and_arguments_an_object() -> None:
    call = {"id": "c1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    conversation = [
        {"role": "user", "name": "n", "content": [{"type": "text", "text": "a"}, "b"], "unknown": 1},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "R"},
        {"role": "tool", "content": "x", "tool_call_id": "c1", "tool_calls": None},
    ]
    read = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    assert template_messages(conversation) == [
        {"role": "user", "content": "a\nb", "name": "n"},
        {"role": "assistant", "content": "", "reasoning_content": "R", "tool_calls": [read]},
        {"role": "tool", "content": "x", "tool_call_id": "c1"},
    ]


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages.0"),
        ({"content": "x"}, "messages.0.role"),
        ({"role": "user"}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "messages.0.content"),
        ({"role": "assistant", "function_call": {}}, "messages.0.function_call"),
        ({"role": "assistant", "tool_calls": ["f"]}, "messages.0.tool_calls.0"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "messages.0.tool_calls.0"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]},
            "messages.0.tool_calls.0.function.arguments",
        ),
    ],
)
def test_a_message_that_is_none_is_named(message: Any, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        template_messages([message])
    assert raised.value.param == param
    assert str(raised.value).startswith((param, "function_call"))
