"""`/v1/completions`: continuations of prompts that are texts or token ids."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

from fastapi import Request, Response

from server.link.text_stream import Delta
from server.openai.protocol.completions import Choice, Completion, CompletionRequest
from server.openai.serving import Arrival, Running, Serving, as_json


class Completions:
    """The handler of `/v1/completions`."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def create(self, request: Request) -> Response:
        most = self._serving.max_sequences
        return await self._serving.answer(request, lambda raw: CompletionRequest.parse(raw, most), self._respond)

    async def _respond(self, body: CompletionRequest, arrival: Arrival) -> Response:
        sampling = self._serving.admit(body, body.num_prompts)
        prompts = body.token_lists
        if prompts:
            self._serving.check_prompts(prompts, "prompt")
        else:
            prompts = await self._serving.encode(body.texts, body.add_special_tokens, "prompt")
        self._serving.check_limit(body, prompts)
        running = self._serving.start("cmpl", prompts, sampling, arrival)
        if body.stream:
            return self._serving.stream(running, _chunks(running, body))
        return await _whole(running)


async def _whole(running: Running) -> Response:
    pieces: list[list[str]] = [[] for _ in range(running.num_choices)]
    last: dict[int, Delta] = {}

    def take(delta: Delta) -> None:
        pieces[delta.choice].append(delta.text)
        last[delta.choice] = delta

    await running.collect(take)
    choices = [
        Choice(index, "".join(pieces[index]), last[index].finish_reason, last[index].stop_reason)
        for index in range(running.num_choices)
    ]
    return as_json(_completion(running, choices, running.text.num_tokens))


def _chunks(running: Running, body: CompletionRequest) -> AsyncIterator[bytes]:
    def pieces(delta: Delta) -> list[Choice]:
        return [Choice(delta.choice, delta.text, delta.finish_reason, delta.stop_reason)]

    return running.events(body, pieces, partial(_completion, running))


def _completion(running: Running, choices: list[Choice], completion_tokens: int | None) -> Completion:
    header = running.header
    return Completion(
        id=header.id,
        created=header.created,
        model=header.model,
        choices=choices,
        usage=header.usage(completion_tokens),
    )
