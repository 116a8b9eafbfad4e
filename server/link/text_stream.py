"""From the engine's outputs to text: what both kinds of completion, streamed and whole, are made of."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import NamedTuple

from seesaw.engine.text.output_text import OutputText
from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.engine.wire.messages import FinishReason, Output
from seesaw.server.link.errors import GenerationError
from seesaw.server.link.stream import Stream
from seesaw.server.metrics import Metrics


class Delta(NamedTuple):
    """What is new of one choice. The text may be empty: its tokens end in half a character."""

    choice: int
    text: str
    num_tokens: int  # of the choice so far
    finish_reason: str | None
    stop_reason: str | int | None
    tokens: list[int]  # that are new
    logprobs: list[TokenLogprobs] = []  # of these, if they were asked for
    prompt_logprobs: list[
        TokenLogprobs
    ] = []  # of all tokens of the prompt but the first, with the choice's first delta


class TextStream:
    """The text of all choices of one HTTP call, in batches of deltas as they come.

    Ends choices at their stop strings, which the engine knows nothing of. Must be closed; closing early
    aborts what has not finished.
    """

    def __init__(
        self, stream: Stream, make_text: Callable[[int], OutputText], metrics: Metrics, *, by_token: bool = False
    ) -> None:
        """`make_text` gives the empty text of a choice. `by_token`: each delta has one token, also where several came
        at once."""
        self._stream = stream
        self._make_text = make_text
        self._texts: dict[int, OutputText] = {}  # of choices that had an output
        self._metrics = metrics
        self._by_token = by_token

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """Raises EngineDeadError and its like, or GenerationError for a request that the engine gave up."""
        async for batch in self._stream:
            deltas: list[Delta] = []
            for choice, output in batch:
                for part in _by_token(output) if self._by_token else (output,):
                    delta = self._push(choice, part)
                    deltas.append(delta)
                    if delta.finish_reason is not None:
                        break
            yield deltas

    def _push(self, choice: int, output: Output) -> Delta:
        text = self._texts.get(choice)
        if text is None:
            text = self._texts[choice] = self._make_text(choice)
        new = text.push(output)
        if text.finish_reason is not None:
            self._finish(choice, text.finish_reason, output.error)
            if output.finish_reason is None:
                self._stream.drop(choice)
        return Delta(
            choice,
            new.text,
            text.num_tokens,
            None if text.finish_reason is None else text.finish_reason.wire,
            text.stop_reason,
            new.tokens,
            new.logprobs,
            output.prompt_logprobs,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens of all choices so far."""
        return sum(text.num_tokens for text in self._texts.values())

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of all prompts that were found; known with the first delta of each."""
        return self._stream.num_cached_tokens

    def close(self) -> None:
        """Abort what has not finished. Idempotent. What never ran does not count as aborted."""
        self._stream.close()
        for text in self._texts.values():
            if text.finish_reason is None:
                text.finish_reason = FinishReason.ABORT
                self._metrics.request_success.labels(FinishReason.ABORT.wire).inc()

    def _finish(self, choice: int, reason: FinishReason, error: str) -> None:
        self._metrics.request_success.labels(reason.wire).inc()
        self._metrics.e2e_request_latency.observe(time.monotonic() - self._stream.arrival_s)
        each_s = self._stream.time_per_output_token_s(choice)
        if each_s is not None:
            self._metrics.request_time_per_output_token.observe(each_s)
        if reason is FinishReason.ERROR:
            raise GenerationError(f"The engine could not complete this request{f': {error}' if error else ''}.")


def _by_token(output: Output) -> Iterator[Output]:
    """The same in pieces of a token."""
    last = max(0, len(output.tokens) - 1)
    for at in range(last + 1):
        is_last = at == last
        yield Output(
            output.id,
            output.index,
            output.tokens[at : at + 1],
            output.finish_reason if is_last else None,
            output.stop_token if is_last else None,
            output.logprobs[at : at + 1],
            output.prompt_logprobs if at == 0 else [],
            output.error,
        )
