"""The messages of a conversation as clients send them, and as chat templates take them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator

from engine.values.errors import RequestError

# The field that has the text, by a part's type.
TEXT_PARTS = {
    **dict.fromkeys(("text", "input_text", "output_text", "reasoning_text", "summary_text"), "text"),
    "refusal": "refusal",
}

Content = str | list[str | dict[str, Any]]


def _read_content(value: Any) -> str:
    """A content as one text; its parts are lines. By hand: a union would report an error for each alternative."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a string or a list of parts")
    return "\n".join(_read_part(index, part) for index, part in enumerate(value))


def _read_part(index: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise ValueError(f"part {index} must be an object with a type")
    if kind not in TEXT_PARTS:
        raise ValueError(f"part {index} is of type {kind[:50]!r}, which is not supported: the model reads text only")
    text = part.get(TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise ValueError(f"part {index} must have a string as its {TEXT_PARTS[kind]}")
    return text


# A content as it is sent; the value is its text.
Text = Annotated[str, PlainValidator(_read_content, json_schema_input_type=Content)]


class FunctionCall(BaseModel):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(BaseModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(BaseModel):
    """A message of any role: what roles there are, the chat template says. What else it holds is ignored."""

    role: str = Field(min_length=1, max_length=64)
    content: Text | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's name for the same
    function_call: Any = None

    def for_template(self, index: int) -> dict[str, Any]:
        """What templates expect: content is a text, arguments are an object. Raises RequestError."""
        where = f"messages.{index}"
        if self.content is None and self.role != "assistant":
            raise RequestError(f"{where}.content is missing: give a string or a list of parts.", f"{where}.content")
        if self.function_call is not None:
            raise RequestError("function_call is not supported: use tool_calls.", f"{where}.function_call")
        message: dict[str, Any] = {"role": self.role, "content": self.content or ""}
        reasoning = self.reasoning_content if self.reasoning_content is not None else self.reasoning
        optional = {"name": self.name, "tool_call_id": self.tool_call_id, "reasoning_content": reasoning}
        message |= {name: value for name, value in optional.items() if value is not None}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": call.type,
                    "function": {
                        "name": call.function.name,
                        "arguments": read_arguments(
                            call.function.arguments, f"{where}.tool_calls.{at}.function.arguments"
                        ),
                    },
                }
                for at, call in enumerate(self.tool_calls)
            ]
        return message


def read_arguments(arguments: str | dict[str, Any], param: str) -> dict[str, Any]:
    """The arguments of a call, which models write as JSON. Raises RequestError."""
    if isinstance(arguments, dict):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"{param} must be a JSON object as a string.", param)
    return value
