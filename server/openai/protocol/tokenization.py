"""What `/tokenize` and `/detokenize` take and give, as in vLLM."""

from __future__ import annotations

import msgspec
from pydantic import Field

from seesaw.engine.text.json_size import MAX_ENTRIES
from seesaw.engine.values.errors import RequestError
from seesaw.server.openai.protocol.body import Body
from seesaw.server.openai.protocol.chat import ChatRequest


class TokenizeText(Body):
    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChat(ChatRequest):
    """A chat's body; what does not change its prompt does not matter."""

    return_token_strs: bool = False


class Detokenize(Body):
    model: str | None = None
    tokens: list[int] = Field(max_length=MAX_ENTRIES)


class _Kinds(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


def read_tokenize(body: bytes) -> TokenizeText | TokenizeChat:
    """A chat if there are messages. Raises RequestError unless there is one or the other, and pydantic's
    ValidationError."""
    try:
        kinds = msgspec.json.decode(body, type=_Kinds)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return TokenizeText.parse(body)  # which says what is wrong
    has_messages, has_prompt = (bytes(kind) not in (b"", b"null") for kind in (kinds.messages, kinds.prompt))
    if has_messages and has_prompt:
        raise RequestError("prompt and messages are two things to tokenize: give one of them.", "prompt")
    if has_messages:
        return TokenizeChat.parse(body)
    if not has_prompt:
        raise RequestError("There is nothing to tokenize: give a prompt, or the messages of a chat.", "prompt")
    return TokenizeText.parse(body)


class Tokens(msgspec.Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizedText(msgspec.Struct, frozen=True):
    prompt: str
