"""`/v1/chat/completions`: the next message of a conversation, whole or as deltas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from fastapi import Request, Response
from msgspec import UNSET, UnsetType

from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.text.chat_template import ChatTemplate
from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.logprobs import TokenLogprobs
from seesaw.server.link.text_stream import Delta
from seesaw.server.openai.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from seesaw.server.openai.protocol.chat import ChatRequest
from seesaw.server.openai.protocol.chat_answer import (
    AnswerChoice,
    AnswerMessage,
    Call,
    CallDelta,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Function,
    FunctionDelta,
    MessageDelta,
)
from seesaw.server.openai.protocol.logprobs import ChatLogprobs
from seesaw.server.openai.serving import Arrival, Running, Serving, as_json
from seesaw.server.openai.untold import Untold
from seesaw.server.render.answer import AnswerFormat, AnswerReader
from seesaw.server.render.events import CallPiece, Content, Event, Reasoning
from seesaw.server.render.tools.forced import Signature


class Chat:
    """The handler of `/v1/chat/completions`."""

    def __init__(
        self,
        serving: Serving,
        template: ChatTemplate,
        answers: AnswerFormat,
        forced: AnswerFormat,
        *,
        trusts_templates: bool = False,
    ) -> None:
        """`forced` is how answers are read that must be calls; it has a tool parser. `trusts_templates`: clients may
        bring their own."""
        self._serving = serving
        self._template = template
        self._answers = answers
        self._forced = forced
        self._trusts_templates = trusts_templates

    @property
    def template(self) -> Any:
        """As `ChatTemplate.text`."""
        return self._template.text

    async def create(self, request: Request) -> Response:
        return await self._serving.answer(request, self.parse, self.respond)

    def parse(self, raw: bytes) -> ChatRequest:
        return ChatRequest.parse(raw)

    async def respond(self, body: ChatRequest, arrival: Arrival) -> Response:
        running, choices = await self.begin(body, arrival)
        if body.stream:
            return self._serving.stream(running, _chunks(running, choices, body))
        return await _whole(running, choices)

    async def begin(self, body: ChatRequest, arrival: Arrival) -> tuple[Running, list[ChatChoice]]:
        """The answers on their way, and the readers of each: the same for all shapes that they are sent in."""
        sampling = self._serving.admit(body, 1)
        self._check_calls(body)
        text = await self.render(body)
        prompts = await self._serving.prompts.encode(
            [text], body.add_special_tokens, body.prompt_param, body.truncate_prompt_tokens
        )
        self._serving.prompts.check_limit(body, prompts)
        body.messages = body.messages[-1:]  # what was rendered is not kept while the answer comes
        arrival.prepared()
        answers, sampling = await self._form(body, sampling, text)
        special = answers.needs_special_tokens(body.may_call)
        running = await self._serving.start(
            "chatcmpl",
            prompts,
            sampling,
            arrival,
            priority=body.priority,
            cache_salt=body.cache_salt,
            show_special_tokens=special,
            by_token=body.parts_logprobs,
        )
        choices = [
            ChatChoice(index, answers.reader(text, body.may_call), body, self._serving.names)
            for index in range(running.num_choices)
        ]
        return running, choices

    async def render(self, body: ChatRequest) -> str:
        """The text of the prompt."""
        if body.chat_template is not None and not self._trusts_templates:
            raise RequestError(
                "chat_template is not taken from clients: start the server with --trust-request-chat-template.",
                "chat_template",
            )
        if len(body.messages) > self._serving.max_model_len:
            raise RequestError(
                f"{len(body.messages)} messages do not fit the context of {self._serving.max_model_len} tokens: "
                "send fewer.",
                body.prompt_param,
            )
        num_chars = sum(len(message.content or "") for message in body.messages)
        return await self._serving.tokens.run(lambda: self._render(body), num_chars)

    async def _form(
        self, body: ChatRequest, sampling: SamplingParams, prompt: str
    ) -> tuple[AnswerFormat, SamplingParams]:
        """How the answer is to be read, and the sampling that gives it the form which is asked for."""
        if functions := body.must_call:
            signatures = [Signature(function.name, function.parameters) for function in functions]
            several = body.chosen is None and body.parallel_tool_calls is not False
            form = await self._serving.tokens.run(lambda: self._forced.calls(signatures, several=several), 0)
            answers, asked = self._forced, (form, "tools")
        elif body.structured is not None:
            answers, asked = self._answers, body.structured
        else:
            return self._answers, sampling
        sampling = await self._serving.take_form(sampling, *asked)
        reasoning = answers.reasoning(prompt)
        if reasoning is None:
            return answers.without_reasoning, sampling
        return answers, msgspec.structs.replace(sampling, reasoning=reasoning)

    def _check_calls(self, body: ChatRequest) -> None:
        if body.may_call and not body.must_call and self._answers.tool_parser is None:
            raise RequestError(
                "This server does not look for tool calls: start it with --enable-auto-tool-choice and "
                "--tool-call-parser, or send tool_choice none.",
                "tool_choice",
            )

    def _render(self, body: ChatRequest) -> str:
        effort = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
        return self._template.render(
            body.conversation(),
            tools=body.tool_schemas(),
            documents=body.documents,
            template=body.chat_template,
            add_generation_prompt=body.begins_message,
            continue_final_message=body.continue_final_message,
            variables=effort | (body.chat_template_kwargs or {}),
            param=body.prompt_param,
        )


@dataclass
class ChatChoice:
    """One of the answers on its way, and what the request wants to see of it."""

    index: int
    reader: AnswerReader
    body: ChatRequest
    names: TokenNames
    has_begun: bool = False
    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[tuple[str, str, list[str]]] = field(default_factory=list)  # id, name, pieces of arguments
    has_more: bool = False  # than content, wanted or not
    last: Delta | None = None
    untold: Untold[TokenLogprobs] = field(default_factory=Untold)
    of_prompt: list[TokenLogprobs] = field(default_factory=list)

    def read(self, delta: Delta) -> Iterator[Event]:
        """What is new and wanted."""
        self.last = delta
        self.untold.add(delta.tokens, delta.logprobs)
        if not self.has_begun:
            self.has_begun = True
            self.of_prompt = delta.prompt_logprobs
            if self.body.echoed:
                yield Content(self.body.echoed)
        events = self.reader.push(delta.text)
        if delta.finish_reason is not None:
            events += self.reader.flush()
        for event in events:
            self.has_more |= not isinstance(event, Content)
            match event:
                case CallPiece(call) if call > 0 and self.body.parallel_tool_calls is False:
                    pass
                case Reasoning() if not self.body.include_reasoning:
                    pass
                case _:
                    yield event

    def pieces(self, delta: Delta) -> Iterator[ChunkChoice]:
        """What is new as OpenAI streams it, the end in a piece of its own."""
        for message in self._messages(delta):
            yield ChunkChoice(self.index, message, None, UNSET, *self.told())
        if delta.finish_reason is not None:
            yield ChunkChoice(self.index, MessageDelta(), self.finish_reason, delta.stop_reason, *self.told())

    def _messages(self, delta: Delta) -> Iterator[MessageDelta]:
        """The role comes first, with the first token: clients take it for that token's time."""
        if not self.has_begun:
            yield MessageDelta(role=self.body.role, content="")
        for event in self.read(delta):
            match event:
                case Content(text):
                    yield MessageDelta(content=text)
                case Reasoning(text):
                    yield MessageDelta(reasoning=text, reasoning_content=text)
                case CallPiece(call, None, arguments):
                    yield MessageDelta(tool_calls=[CallDelta(index=call, function=FunctionDelta(arguments=arguments))])
                case CallPiece(call, name, arguments):
                    function = FunctionDelta(name=name or "", arguments=arguments)
                    id = self.reader.make_call_id()
                    yield MessageDelta(tool_calls=[CallDelta(index=call, id=id, type="function", function=function)])

    def told(self) -> tuple[ChatLogprobs | None, list[int] | UnsetType]:
        """What is told beside a message of the tokens that came since the last one."""
        body, content = self.body, None
        tokens, logprobs = self.untold.take()
        if not tokens:
            return None, UNSET
        if body.logprobs and logprobs is not None:
            as_ids = bool(body.return_tokens_as_token_ids)
            content = chat_logprobs(self.names, tokens, logprobs, top=body.top_logprobs or 0, as_ids=as_ids)
        return content, tokens if body.return_token_ids else UNSET

    def collect(self, delta: Delta) -> None:
        """Keep what is new, for the whole message."""
        for event in self.read(delta):
            match event:
                case Content(text):
                    self.content.append(text)
                case Reasoning(text):
                    self.reasoning.append(text)
                case CallPiece(_, None, arguments):
                    self.calls[-1][2].append(arguments)
                case CallPiece(_, name, arguments):
                    self.calls.append((self.reader.make_call_id(), name or "", [arguments]))

    def whole(self) -> AnswerChoice:
        """All that was collected, once it has ended."""
        assert self.last is not None
        calls = [Call(id=id, function=Function(name, "".join(pieces))) for id, name, pieces in self.calls]
        reasoning = "".join(self.reasoning) if self.reasoning else UNSET
        content = None if self.has_more and not self.content else "".join(self.content)
        message = AnswerMessage(
            role=self.body.role,
            content=content,
            reasoning=reasoning,
            reasoning_content=reasoning,
            tool_calls=calls or UNSET,
        )
        return AnswerChoice(self.index, message, self.finish_reason, self.last.stop_reason, *self.told())

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's word for how it ended, if it has. A call that was cut off is no call to make."""
        reason = self.last.finish_reason if self.last else None
        called = self.reader.num_calls and self.body.chosen is None  # of a chosen one OpenAI says that it stopped
        return "tool_calls" if reason == "stop" and called else reason


async def _whole(running: Running, choices: list[ChatChoice]) -> Response:
    await running.collect(lambda delta: choices[delta.choice].collect(delta))
    header, first, [prompt] = running.header, choices[0], running.prompts
    told = first.body.prompt_logprobs is not None
    # Of a long prompt it takes long to tell.
    of_prompt = await asyncio.to_thread(prompt_logprobs, first.names, prompt, first.of_prompt) if told else UNSET
    completion = ChatCompletion(
        id=header.id,
        created=header.created,
        model=header.model,
        choices=[choice.whole() for choice in choices],
        usage=running.usage(running.text.num_tokens),
        prompt_logprobs=of_prompt,
        prompt_token_ids=prompt if first.body.return_token_ids else UNSET,
    )
    return as_json(completion)


def _chunks(running: Running, choices: list[ChatChoice], body: ChatRequest) -> AsyncIterator[bytes]:
    header = running.header
    untold = list(running.prompts) if body.return_token_ids else []

    def chunk(pieces: list[ChunkChoice], completion_tokens: int | None) -> ChatChunk:
        return ChatChunk(
            id=header.id,
            created=header.created,
            model=header.model,
            choices=pieces,
            usage=running.usage_if(completion_tokens),
            prompt_token_ids=untold.pop() if untold else UNSET,
        )

    return running.events(body, lambda delta: choices[delta.choice].pieces(delta), chunk)
