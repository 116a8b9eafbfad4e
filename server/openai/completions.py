"""`/v1/completions`: continuations of prompts that are texts or token ids."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request, Response

from server.link.text_stream import Delta
from server.openai.protocol.completions import Choice, Completion, CompletionRequest
from server.openai.serving import Arrival, Running, Serving, as_event, encode


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
        running = self._serving.start("cmpl", body, prompts, sampling, arrival)
        if body.stream:
            return self._serving.stream(running, _chunks(running, body))
        return await _whole(running)


async def _whole(running: Running) -> Response:
    pieces: list[list[str]] = [[] for _ in range(running.num_choices)]
    last: dict[int, Delta] = {}
    try:
        async for batch in running.text.deltas():
            for delta in batch:
                pieces[delta.choice].append(delta.text)
                last[delta.choice] = delta
    finally:
        running.text.close()
    choices = [
        Choice(index, "".join(pieces[index]), last[index].finish_reason, last[index].stop_reason)
        for index in range(running.num_choices)
    ]
    completion = _completion(running, choices, running.text.num_tokens)
    return Response(encode(completion), media_type="application/json")


async def _chunks(running: Running, body: CompletionRequest) -> AsyncIterator[bytes]:
    """Events; all that is ready at once leaves in one piece."""
    async for batch in running.text.deltas():
        num_tokens = running.text.num_tokens if body.wants_running_usage else None
        yield b"".join(
            as_event(
                _completion(
                    running, [Choice(delta.choice, delta.text, delta.finish_reason, delta.stop_reason)], num_tokens
                )
            )
            for delta in batch
        )
    if body.wants_usage:
        yield as_event(_completion(running, [], running.text.num_tokens))


def _completion(running: Running, choices: list[Choice], completion_tokens: int | None) -> Completion:
    header = running.header
    return Completion(
        id=header.id,
        created=header.created,
        model=header.model,
        choices=choices,
        usage=header.usage(completion_tokens),
    )
