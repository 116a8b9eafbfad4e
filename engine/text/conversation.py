"""Conversations as chat templates take them, from messages as OpenAI's clients write them.

Used by `engine.text.chat_template`; the server's bodies (`server.openai.protocol.messages`) read contents by it, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from seesaw.engine.text.json_size import MAX_VALUES, count_values
from seesaw.engine.values.errors import RequestError

# The field that has the text, by a part's type.
TEXT_PARTS = {
    **dict.fromkeys(("text", "input_text", "output_text", "reasoning_text", "summary_text"), "text"),
    "refusal": "refusal",
}

Message = Mapping[str, Any]
Conversation = Sequence[Message]


def template_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """What templates expect: content is a text, arguments of calls are an object, and there is nothing else than they
    know. Raises RequestError, naming the field as in `messages.0.content`."""
    return [_template_message(message, f"messages.{index}") for index, message in enumerate(conversation)]


def read_content(value: Any) -> str:
    """A message's content, a text or a list of parts, as one text; parts are lines. Raises ValueError."""
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


def _template_message(message: Message, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where} must be an object with a role and a content.", where)
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise RequestError(f"{where}.role must be a string.", f"{where}.role")
    if content is None and role != "assistant":
        raise RequestError(f"{where}.content is missing: give a string or a list of parts.", f"{where}.content")
    if message.get("function_call") is not None:
        raise RequestError("function_call is not supported: use tool_calls.", f"{where}.function_call")
    try:
        text = "" if content is None else read_content(content)
    except ValueError as error:
        raise RequestError(f"{where}.content: {error}.", f"{where}.content") from None
    reasoning = message.get("reasoning_content")
    optional = {
        "name": message.get("name"),
        "tool_call_id": message.get("tool_call_id"),
        "reasoning_content": message.get("reasoning") if reasoning is None else reasoning,  # vLLM has both names
    }
    result: dict[str, Any] = {"role": role, "content": text}
    result |= {name: value for name, value in optional.items() if value is not None}
    if message.get("tool_calls"):
        result["tool_calls"] = [
            _template_call(call, f"{where}.tool_calls.{index}") for index, call in enumerate(message["tool_calls"])
        ]
    return result


def _template_call(call: Any, where: str) -> dict[str, Any]:
    match call:
        case {"function": {"name": str(name), **rest}}:
            arguments = read_arguments(rest.get("arguments", "{}"), f"{where}.function.arguments")
            function = {"name": name, "arguments": arguments}
            return {"id": call.get("id"), "type": call.get("type", "function"), "function": function}
    raise RequestError(f"{where} must have a function with a name.", where)


def read_arguments(arguments: Any, param: str) -> dict[str, Any]:
    """The arguments of a call, which models write as JSON. Raises RequestError."""
    if isinstance(arguments, dict):
        return arguments
    if isinstance(arguments, str) and count_values(arguments.encode(errors="replace")).entries > MAX_VALUES:
        raise RequestError(f"{param} must have at most {MAX_VALUES} entries.", param)
    try:
        value = json.loads(arguments or "{}")
    except (TypeError, ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError(f"{param} must be a JSON object as a string.", param)
    return value
