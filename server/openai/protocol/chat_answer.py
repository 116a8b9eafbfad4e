"""What `/v1/chat/completions` gives: a whole message, or the deltas of one. What is unset does not appear."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from seesaw.server.openai.protocol.generation import Usage
from seesaw.server.openai.protocol.logprobs import ChatLogprobs, PromptLogprobs

Text = str | UnsetType


class FunctionDelta(msgspec.Struct, frozen=True, kw_only=True):
    name: Text = UNSET
    arguments: str


class CallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tool call. The first one of a call has its id, type and name."""

    index: int
    id: Text = UNSET
    type: Text = UNSET
    function: FunctionDelta


class MessageDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of a message. Reasoning has two names: vLLM's of today, and the one that most clients read."""

    role: Text = UNSET
    content: Text = UNSET
    reasoning: Text = UNSET
    reasoning_content: Text = UNSET
    tool_calls: list[CallDelta] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: MessageDelta
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int  # Unix seconds
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET  # in the first one


class Function(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class Call(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: str = "function"
    function: Function


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: str
    content: str | None
    refusal: None = None
    reasoning: Text = UNSET
    reasoning_content: Text = UNSET
    tool_calls: list[Call] | UnsetType = UNSET


class AnswerChoice(msgspec.Struct, frozen=True):
    index: int
    message: AnswerMessage
    finish_reason: str | None
    stop_reason: str | int | None = None
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole response."""

    id: str
    object: str = "chat.completion"
    created: int  # Unix seconds
    model: str
    choices: list[AnswerChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
