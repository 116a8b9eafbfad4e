"""`/v1/completions`: continuations of prompts that are texts or token ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

from fastapi import Request, Response
from msgspec import UNSET

from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.server.link.text_stream import Delta
from seesaw.server.openai.logprobs import TokenNames, completion_logprobs, prompt_logprobs
from seesaw.server.openai.protocol.completions import Choice, Completion, CompletionRequest
from seesaw.server.openai.serving import Arrival, Running, Serving, as_json
from seesaw.server.openai.untold import Untold

_MANY_CHOICES = 256


class Completions:
    """The handler of `/v1/completions`."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def create(self, request: Request) -> Response:
        return await self._serving.answer(request, self.parse, self.respond)

    def parse(self, raw: bytes) -> CompletionRequest:
        return CompletionRequest.parse(raw)

    async def respond(self, body: CompletionRequest, arrival: Arrival) -> Response:
        sampling = self._serving.admit(body, body.num_prompts)
        prompts = body.token_lists
        if prompts:
            prompts = await self._serving.prompts.fit(prompts, body.truncate_prompt_tokens, "prompt")
        else:
            prompts = await self._serving.prompts.encode(
                body.texts, body.add_special_tokens, "prompt", body.truncate_prompt_tokens
            )
        self._serving.prompts.check_limit(body, prompts)
        arrival.prepared()
        if (asked := body.structured) is not None:
            sampling = await self._serving.take_form(sampling, *asked)
        running = await self._serving.start(
            "cmpl", prompts, sampling, arrival, priority=body.priority, cache_salt=body.cache_salt
        )
        choices = []
        for index in range(running.num_choices):
            prompt = index // sampling.n
            text = ""
            if body.echo:
                text = body.texts[prompt] if body.texts else self._serving.prompts.text_of(prompts[prompt])
            choices.append(_Choice(index, body, prompts[prompt], text, self._serving.names))
        if body.stream:
            return self._serving.stream(running, _chunks(running, choices, body))
        return await _whole(running, choices, body)


@dataclass
class _Choice:
    """One of the answers on its way: what has come of it, and is not yet told."""

    index: int
    body: CompletionRequest
    prompt: list[int]
    prompt_text: str
    names: TokenNames
    texts: list[str] = field(default_factory=list)
    untold: Untold[TokenLogprobs | None] = field(default_factory=Untold)
    of_prompt: list[TokenLogprobs] = field(default_factory=list)
    has_begun: bool = False
    is_first: bool = True
    offset: int = 0  # characters of all tokens told of so far
    last: Delta | None = None

    def take(self, delta: Delta) -> None:
        """Keep what is new."""
        body, self.last = self.body, delta
        if not self.has_begun:
            self.has_begun = True
            self.of_prompt = delta.prompt_logprobs
            if body.echo:
                self.texts.append(self.prompt_text)
                self.untold.add(self.prompt, [None, *delta.prompt_logprobs])
        if not body.is_only_echoed:
            self.texts.append(delta.text)
            self.untold.add(delta.tokens, delta.logprobs)

    def told(self) -> Choice:
        """All that was kept, which is then forgotten."""
        body, names, logprobs, last = self.body, self.names, None, self.last
        assert last is not None
        tokens, told = self.untold.take()
        if body.logprobs is not None and told is not None:
            as_ids = bool(body.return_tokens_as_token_ids)
            logprobs = completion_logprobs(names, tokens, told, top=body.logprobs, offset=self.offset, as_ids=as_ids)
            self.offset = logprobs.text_offset[-1] + len(logprobs.tokens[-1]) if logprobs.tokens else self.offset
        echoed = len(self.prompt) if body.echo and self.is_first else 0
        choice = Choice(
            self.index,
            "".join(self.texts),
            last.finish_reason,
            last.stop_reason,
            logprobs,
            UNSET if body.prompt_logprobs is None else prompt_logprobs(names, self.prompt, self.of_prompt),
            tokens[echoed:] if body.return_token_ids else UNSET,
            self.prompt if body.return_token_ids and self.is_first else UNSET,
        )
        self.texts, self.is_first = [], False
        return choice


async def _whole(running: Running, choices: list[_Choice], body: CompletionRequest) -> Response:
    await running.collect(lambda delta: choices[delta.choice].take(delta))
    num_tokens = 0 if body.is_only_echoed else running.text.num_tokens

    def answer() -> Response:
        return as_json(_completion(running, [choice.told() for choice in choices], num_tokens))

    # Of a long prompt it takes long to tell, and of many choices.
    if body.num_prompt_logprobs is None and len(choices) <= _MANY_CHOICES:
        return answer()
    return await asyncio.to_thread(answer)


def _chunks(running: Running, choices: list[_Choice], body: CompletionRequest) -> AsyncIterator[bytes]:
    def pieces(delta: Delta) -> list[Choice]:
        choice = choices[delta.choice]
        choice.take(delta)
        return [choice.told()]

    return running.events(body, pieces, partial(_completion, running))


def _completion(running: Running, choices: list[Choice], completion_tokens: int | None) -> Completion:
    header = running.header
    return Completion(
        id=header.id,
        created=header.created,
        model=header.model,
        choices=choices,
        usage=running.usage_if(completion_tokens),
    )
