"""`/v1/responses`: a chat's answer as OpenAI's newer shape has it, whole or as events. Nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence

import msgspec
from fastapi import Request
from fastapi import Response as HTTPResponse

from seesaw.server.http.errors import describe
from seesaw.server.link.text_stream import Delta
from seesaw.server.openai.chat import Chat, ChatChoice
from seesaw.server.openai.output_writer import IN_PROGRESS, OutputWriter
from seesaw.server.openai.protocol.logprobs import ContentLogprob
from seesaw.server.openai.protocol.responses import ReasoningOptions, ResponsesRequest
from seesaw.server.openai.protocol.responses_answer import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseUsage,
    StreamEvent,
)
from seesaw.server.openai.serving import Arrival, Running, Serving, as_event, as_json
from seesaw.server.render.events import Content, Reasoning


class Responses:
    """The handler of `/v1/responses`."""

    def __init__(self, serving: Serving, chat: Chat) -> None:
        self._serving = serving
        self._chat = chat

    async def create(self, request: Request) -> HTTPResponse:
        return await self._serving.answer(request, ResponsesRequest.parse, self._respond)

    async def _respond(self, body: ResponsesRequest, arrival: Arrival) -> HTTPResponse:
        running, [choice] = await self._chat.begin(body.chat, arrival)
        body.input = []  # as in chats
        answer = _Answer(running, choice, _begun(body, running, arrival))
        if body.stream:
            events = running.events(body.chat, answer.events, lambda events, _: events[0])
            return self._serving.stream(running, _after(answer.begin(), events), failed=answer.failed, end=b"")
        await running.collect(answer.collect)
        return as_json(answer.response)


class _Answer:
    """A response on its way. `response` is how it is now; its output appears when it ends."""

    def __init__(self, running: Running, choice: ChatChoice, response: Response) -> None:
        self.response = response
        self._running = running
        self._choice = choice
        self._writer = OutputWriter(choice.reader.make_call_id)
        self._reasoning_tokens = 0

    def begin(self) -> Iterator[StreamEvent]:
        """The events before the first token."""
        yield ResponseCreated(sequence_number=self._writer.next_number(), response=self.response)
        yield ResponseInProgress(sequence_number=self._writer.next_number(), response=self.response)

    def events(self, delta: Delta) -> Iterator[StreamEvent]:
        """The events that this piece makes."""
        was_thinking, event = self._choice.reader.is_thinking, None
        for event in self._choice.read(delta):
            if isinstance(event, Reasoning):
                self._reasoning_tokens = delta.num_tokens
            yield from self._writer.write(event, self._told() if isinstance(event, Content) else ())
        if was_thinking or not isinstance(event, Content | None):
            self._told()  # and forgotten: these tokens are no text, if it is not held back
        if delta.finish_reason is None:
            return
        is_whole = delta.finish_reason != "length"
        status = "completed" if is_whole else "incomplete"
        yield from self._writer.close(status, self._told())
        self.response = msgspec.structs.replace(
            self.response,
            status=status,
            incomplete_details=None if is_whole else IncompleteDetails("max_output_tokens"),
            output=self._writer.items,
            usage=self._usage(),
        )
        ended = ResponseCompleted if is_whole else ResponseIncomplete
        yield ended(sequence_number=self._writer.next_number(), response=self.response)

    def _told(self) -> Sequence[ContentLogprob]:
        """Of the tokens that came since the last call."""
        logprobs, _ = self._choice.told()
        return logprobs.content if logprobs else ()

    def collect(self, delta: Delta) -> None:
        """Take this piece for the whole response."""
        for _ in self.events(delta):
            pass

    def failed(self, error: Exception) -> bytes:
        """The last event of a stream that broke."""
        self.response = msgspec.structs.replace(
            self.response,
            status="failed",
            error=ResponseError("server_error", describe(error).message),
            output=self._writer.items,
        )
        return as_event(ResponseFailed(sequence_number=self._writer.next_number(), response=self.response))

    def _usage(self) -> ResponseUsage:
        prompt_tokens, output_tokens = self._running.header.prompt_tokens, self._running.text.num_tokens
        return ResponseUsage(
            input_tokens=prompt_tokens,
            input_tokens_details=InputTokensDetails(self._running.text.num_cached_tokens),
            output_tokens=output_tokens,
            # Up to the last piece that held some: its end counts, too, if both came at once.
            output_tokens_details=OutputTokensDetails(self._reasoning_tokens),
            total_tokens=prompt_tokens + output_tokens,
        )


def _begun(body: ResponsesRequest, running: Running, arrival: Arrival) -> Response:
    """The response before its first token."""
    reasoning = body.reasoning or ReasoningOptions()
    return Response(
        id=f"resp_{arrival.id}",
        created_at=running.header.created,
        status=IN_PROGRESS,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        model=running.header.model,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        reasoning={"effort": reasoning.effort, "summary": reasoning.summary},
        temperature=running.sampling.temperature,
        text={"format": body.text_format},
        tool_choice="auto" if body.tool_choice is None else body.tool_choice,
        tools=[tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
        top_logprobs=body.top_logprobs or 0,
        top_p=running.sampling.top_p,
    )


async def _after(first: Iterator[StreamEvent], events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"".join(map(as_event, first))
    async for event in events:
        yield event
