"""What a server streams: server-sent events, and of each what matters to a load test. Called by `clients.recorder`
and `clients.streaming`.

Any OpenAI-compatible server's: of completions and chats, with or without usage, comments and keep-alives.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

DONE = b"[DONE]"

_Count = Annotated[int, msgspec.Meta(ge=0)]


class EventParser:
    """Server-sent events out of bytes that may be cut anywhere: the payload of each `data:` line."""

    def __init__(self) -> None:
        self._rest = b""
        self.has_events = False

    def feed(self, data: bytes) -> list[bytes]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        return self._payloads(lines)

    def end(self) -> list[bytes]:
        """No more bytes come; the last line may lack its end."""
        rest, self._rest = self._rest, b""
        return self._payloads([rest])

    def _payloads(self, lines: list[bytes]) -> list[bytes]:
        payloads = [line[5:].strip() for line in lines if line.startswith(b"data:")]
        self.has_events = self.has_events or bool(payloads)
        return payloads


class Delta(msgspec.Struct):
    """A piece of a chat's message."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def shown(self) -> str:
        """The text that this piece adds."""
        if self.delta is None:
            return self.text or ""
        return (self.delta.reasoning or self.delta.reasoning_content or "") + (self.delta.content or "")

    @property
    def has_token(self) -> bool:
        """Whether a token was generated for this piece.

        A token may add no text: it is special, or half of a character. Without text, a piece that opens the message
        (a role) or closes it (a finish reason) is no token.
        """
        if self.shown:
            return True
        if self.delta is None:
            return self.finish_reason is None
        return bool(self.delta.tool_calls) or (self.delta.content == "" and not (self.delta.role or self.finish_reason))


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class Usage(msgspec.Struct):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class Chunk(msgspec.Struct):
    """What matters of an event. Unknown keys are passed over."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None

    @property
    def problem(self) -> Any:
        """What went wrong, if it did; some servers send it without `error` around it."""
        return self.message if self.error is None and self.object == "error" else self.error


decode_chunk = msgspec.json.Decoder(Chunk).decode
