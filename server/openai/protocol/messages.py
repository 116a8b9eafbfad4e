"""The messages of a conversation as clients send them; `engine.text.conversation` makes of them what templates take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from seesaw.engine.text.conversation import read_content
from seesaw.server.openai.protocol.body import Body

Content = str | list[str | dict[str, Any]]


# The text of a content. Read by hand: a union would report an error for each alternative.
Text = Annotated[str, PlainValidator(read_content, json_schema_input_type=Content)]


class FunctionCall(Body):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Body):
    """A message of any role: what roles there are, the chat template says. What else it holds is ignored."""

    role: str = Field(min_length=1, max_length=64)
    content: Text | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's name for the same
    function_call: Any = None
