"""Turns the events of one streamed request into its record. Called by `clients.streaming`.

The hot path of the load test: everything done for each event is done at this speed, or the client is what it measures.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.clients.events import DONE, Usage, decode_chunk
from seesaw.clients.messages import message_of
from seesaw.clients.record import CountedBy, Record


@dataclass(frozen=True)
class Request:
    """A prompt, as text or token ids, and how many tokens may follow."""

    prompt: str | list[int]
    input_tokens: int
    max_tokens: int


class StreamError(Exception):
    """The server's stream is not a whole answer; says why."""


@dataclass
class Recorder:
    """One request's; `start_s` is set when it goes on the wire."""

    request: Request
    arrival_s: float  # when it was due, on the monotonic clock
    start_s: float = 0.0
    _ttft_s: float | None = None
    _token_s: float = 0.0  # when the last token came
    _last_s: float = 0.0  # when the last choice came
    _itls_s: list[float] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _usage: Usage | None = None
    _is_finished: bool = False

    def event(self, data: bytes, now_s: float) -> None:
        """An event's payload came. Raises StreamError or msgspec.DecodeError."""
        if data == DONE:
            self._is_finished = True
            return
        chunk = decode_chunk(data)
        if chunk.problem is not None:
            raise StreamError(f"error in the stream: {message_of(chunk.problem)}")
        if chunk.choices:
            choice = chunk.choices[0]
            if choice.has_token:
                if self._ttft_s is None:
                    self._ttft_s = now_s - self.start_s
                else:
                    self._itls_s.append(now_s - self._token_s)
                self._token_s = now_s
            self._last_s = now_s
            self._texts.append(choice.shown)
            self._is_finished = self._is_finished or choice.finish_reason is not None
        if chunk.usage is not None:
            self._usage = chunk.usage

    def finish(self) -> Record:
        """The record of a stream that has ended by itself. Raises StreamError if it is not whole."""
        if not self._texts:
            raise StreamError("the stream had no choices")
        if not self._is_finished:
            raise StreamError("the stream ended without [DONE] or a finish_reason")
        usage = self._usage or Usage()
        input_tokens = self.request.input_tokens if usage.prompt_tokens is None else usage.prompt_tokens
        if usage.completion_tokens is not None:
            return self._record(input_tokens, usage.completion_tokens, self._last_s, cached_tokens=usage.cached_tokens)
        num_events = len(self._itls_s) + (self._ttft_s is not None)
        return self._record(input_tokens, num_events, self._last_s, counted_by="events")

    def fail(self, reason: str, now_s: float) -> Record:
        return self._record(self.request.input_tokens, 0, now_s, error=reason)

    def _record(
        self,
        input_tokens: int,
        output_tokens: int,
        end_s: float,
        *,
        error: str = "",
        cached_tokens: int | None = None,
        counted_by: CountedBy = "usage",
    ) -> Record:
        start_s = self.start_s or end_s  # it may have failed before it was on the wire
        ttft_s = self._ttft_s
        if ttft_s is None:  # an answer without a token
            ttft_s = self._last_s - start_s if self._texts else 0.0
        return Record(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            queue_s=start_s - self.arrival_s,
            start_s=start_s,
            ttft_s=ttft_s,
            itls_s=self._itls_s,
            latency_s=end_s - start_s,
            text="".join(self._texts),
            error=error,
            cached_tokens=cached_tokens,
            counted_by=counted_by,
        )
