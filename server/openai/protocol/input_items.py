"""The items of a `/v1/responses` request's input, and the messages that they are to chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, model_validator

from seesaw.engine.text.conversation import read_arguments
from seesaw.server.openai.protocol.body import Body
from seesaw.server.openai.protocol.messages import FunctionCall, Message, Text, ToolCall

NEEDED = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}
UNFINISHED = ("in_progress", "incomplete")


class InputItem(Body):
    """A message, or a part of one turn of the model: its reasoning, a call of a function, that call's output. The items
    of a response's output are taken as they are, so that clients can send them back."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    status: str | None = None
    role: str | None = Field(default=None, min_length=1, max_length=64)
    content: Text | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Text | None = None
    summary: Text | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> InputItem:
        lacking = [name for name in NEEDED[self.type] if getattr(self, name) is None]
        if lacking:
            raise ValueError(f"a {self.type} needs {' and '.join(lacking)}")
        return self

    @property
    def is_unfinished(self) -> bool:
        """Whether it is a message of the model that the answer is to go on with."""
        return self.type == "message" and self.role == "assistant" and self.status in UNFINISHED


def as_messages(items: Sequence[InputItem]) -> list[Message]:
    """The conversation. What the model said in one turn is one message. Raises RequestError."""
    messages: list[Message] = []
    for index, item in enumerate(items):
        match item.type:
            case "message" if item.role == "assistant":
                _turn(messages, "content").content = item.content
            case "message":
                messages.append(Message(role=item.role or "", content=item.content))
            case "function_call_output":
                messages.append(Message(role="tool", content=item.output, tool_call_id=item.call_id))
            case "reasoning":
                _turn(messages, "reasoning_content").reasoning_content = item.content or item.summary
            case "function_call":
                arguments = read_arguments(item.arguments or "", f"input.{index}.arguments")
                call = ToolCall(id=item.call_id, function=FunctionCall(name=item.name or "", arguments=arguments))
                turn = _turn(messages)
                if turn.tool_calls is None:
                    turn.tool_calls = []
                turn.tool_calls.append(call)
    return messages


def _turn(messages: list[Message], unset: str | None = None) -> Message:
    """The assistant's message that is still being made, or a new one if there is none or it has what `unset` names.
    Reasoning and text come before calls."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant" or (unset and (last.tool_calls or getattr(last, unset) is not None)):
        last = Message(role="assistant")
        messages.append(last)
    return last
