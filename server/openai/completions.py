"""`/v1/completions`: from a request's body to token ids, and from the engine's outputs to an answer."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from engine.errors import RequestError, SeesawError
from engine.messages import EngineInfo
from engine.sampling import SamplingParams
from engine.text import OutputText
from server.asgi import EventStream, until_disconnect
from server.bridge import Bridge
from server.deltas import Delta, TextStream
from server.errors import error_event
from server.openai.body import read_body
from server.openai.models import Models
from server.openai.protocol import Choice, Completion, CompletionRequest, Usage
from server.tokens import TokenizerPool

logger = logging.getLogger(__name__)

# nginx's status for a client that left; it is only ever seen in the access log.
CLIENT_CLOSED_REQUEST = 499

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class _Header:
    """What is the same in all chunks of an answer."""

    id: str
    created: int
    model: str
    prompt_tokens: int

    def completion(self, choices: list[Choice], completion_tokens: int | None = None) -> bytes:
        """Encoded; with usage if the number of completion tokens is given."""
        usage = msgspec.UNSET if completion_tokens is None else Usage.of(self.prompt_tokens, completion_tokens)
        return _encode(Completion(id=self.id, created=self.created, model=self.model, choices=choices, usage=usage))


class Completions:
    """The handler of `/v1/completions`."""

    def __init__(self, bridge: Bridge, info: EngineInfo, models: Models, tokens: TokenizerPool) -> None:
        self._bridge = bridge
        self._info = info
        self._models = models
        self._tokens = tokens
        self._max_sequences = bridge.max_queued_requests

    async def create(self, request: Request) -> Response:
        try:
            body = await read_body(request, lambda raw: CompletionRequest.parse(raw, self._max_sequences))
            response = await until_disconnect(request.receive, self._respond(body))
        except ClientDisconnect:
            response = None
        return response or Response(status_code=CLIENT_CLOSED_REQUEST)

    async def _respond(self, body: CompletionRequest) -> Response:
        arrival_s = time.monotonic()
        self._models.check(body.model)
        body.check()
        sampling = body.sampling()
        self._check_number(body.num_prompts, sampling.n)
        self._bridge.check_room(body.num_prompts * sampling.n)
        prompts = await self._tokenize(body)
        requests = [(prompt, self._fit(prompt, sampling)) for prompt in prompts]

        def make_text(choice: int) -> OutputText:
            return OutputText(
                self._tokens.tokenizer,
                prompts[choice // sampling.n],
                stop=body.stops,
                stop_token_ids=sampling.stop_token_ids,
                skip_special_tokens=body.skip_special_tokens,
                include_stop=body.include_stop_str_in_output,
            )

        header = _Header(f"cmpl-{uuid.uuid4().hex}", int(time.time()), self._models.name, sum(map(len, prompts)))
        stream = self._bridge.submit(header.id, requests, arrival_s)
        text = TextStream(stream, make_text, self._bridge.metrics)
        if body.stream:
            return EventStream(_events(header, text, body), text.close)
        return await _whole(header, text, len(prompts) * sampling.n)

    async def _tokenize(self, body: CompletionRequest) -> list[list[int]]:
        texts, token_lists = body.texts, body.token_lists
        most_chars = self._info.max_model_len * self._tokens.tokenizer.max_token_chars
        for text in texts:
            if len(text) > most_chars:  # said now, since tokenizing it would take long
                raise RequestError(
                    f"The prompt has {len(text)} characters, which do not fit the context of "
                    f"{self._info.max_model_len} tokens: shorten the prompt.",
                    "prompt",
                )
        prompts = await self._tokens.encode(texts) if texts else token_lists
        for prompt in prompts:
            if not prompt:
                raise RequestError("The prompt is empty: it must have at least one token.", "prompt")
            self._check_length(prompt)
            if token_lists and not 0 <= min(prompt) <= max(prompt) < self._info.vocab_size:
                raise RequestError(f"Token ids must be between 0 and {self._info.vocab_size - 1}.", "prompt")
        return prompts

    def _check_number(self, num_prompts: int, n: int) -> None:
        """Refuse for good what would never find room."""
        if num_prompts * n > self._max_sequences:
            raise RequestError(
                f"{num_prompts} prompts with n {n} make {num_prompts * n} sequences, more than the "
                f"{self._max_sequences} that may wait: send fewer prompts at once or lower n.",
                "prompt",
            )

    def _check_length(self, prompt: list[int]) -> None:
        context = self._info.max_model_len
        if len(prompt) >= context:
            raise RequestError(
                f"The prompt has {len(prompt)} tokens but the context is {context} tokens, of which at least one "
                "must remain for the output: shorten the prompt.",
                "prompt",
            )

    def _fit(self, prompt: list[int], sampling: SamplingParams) -> SamplingParams:
        """Check `max_tokens` against the context; as in vLLM, give what room the prompt leaves."""
        context = self._info.max_model_len
        if sampling.max_tokens > context:
            raise RequestError(
                f"max_tokens is {sampling.max_tokens} but the context is {context} tokens: ask for fewer.", "max_tokens"
            )
        return msgspec.structs.replace(sampling, max_tokens=min(sampling.max_tokens, context - len(prompt)))


async def _whole(header: _Header, text: TextStream, num_choices: int) -> Response:
    pieces: list[list[str]] = [[] for _ in range(num_choices)]
    last: dict[int, Delta] = {}
    try:
        async for batch in text.deltas():
            for delta in batch:
                pieces[delta.choice].append(delta.text)
                last[delta.choice] = delta
    finally:
        text.close()
    choices = [
        Choice(index, "".join(pieces[index]), last[index].finish_reason, last[index].stop_reason)
        for index in range(num_choices)
    ]
    return Response(header.completion(choices, text.num_tokens), media_type="application/json")


async def _events(header: _Header, text: TextStream, body: CompletionRequest) -> AsyncIterator[bytes]:
    """Server-sent events; all that is ready at once leaves in one piece."""
    options = body.stream_options
    with_usage = options is not None and options.include_usage
    always = with_usage and options is not None and options.continuous_usage_stats
    try:
        async for batch in text.deltas():
            yield b"".join(
                b"data: %b\n\n"
                % header.completion(
                    [Choice(delta.choice, delta.text, delta.finish_reason, delta.stop_reason)],
                    text.num_tokens if always else None,
                )
                for delta in batch
            )
        if with_usage:
            yield b"data: %b\n\n" % header.completion([], text.num_tokens)
    except Exception as error:  # the status was sent: all that is left is to say so in the stream
        if not isinstance(error, SeesawError):
            logger.exception("a stream failed")
        yield error_event(error)
    yield b"data: [DONE]\n\n"
