"""What all handlers of generation share: from a body to tokens that fit, and from the engine's outputs to an answer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from msgspec import UNSET, UnsetType
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from seesaw.engine.sampling.defaults import SamplingDefaults
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.sampling.structured import StructuredOutputs
from seesaw.engine.scheduler.requests import check_priority
from seesaw.engine.text.bad_words import with_bad_words
from seesaw.engine.text.output_text import OutputText
from seesaw.engine.text.tokenizer import Tokenizer
from seesaw.engine.values.errors import RequestError, SeesawError
from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.config import ServerConfig
from seesaw.server.http.body import read_body, receive_body
from seesaw.server.http.errors import error_event
from seesaw.server.http.streams import EventStream, until_disconnect
from seesaw.server.ids import unique_id
from seesaw.server.link.bridge import MOST_LOST, Bridge
from seesaw.server.link.errors import EngineLostError
from seesaw.server.link.grammar_check import GrammarCheck
from seesaw.server.link.room import size_tokens
from seesaw.server.link.text_stream import Delta, TextStream
from seesaw.server.openai.gates import Gates
from seesaw.server.openai.logprobs import TokenNames
from seesaw.server.openai.models import Models
from seesaw.server.openai.prompts import Prompts
from seesaw.server.openai.protocol.generation import GenerationRequest, Usage
from seesaw.server.render.tokens import TokenizerPool
from seesaw.server.threads import Lanes, in_daemon_thread

logger = logging.getLogger(__name__)

# nginx's status for a client that left; it is only ever seen in the access log.
CLIENT_CLOSED_REQUEST = 499

B = TypeVar("B", bound=BaseModel)
C = TypeVar("C")  # a choice of a chunk

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Arrival:
    """Of a request whose body has been read."""

    id: str  # of the client's choice: several may have the same
    time_s: float  # on the monotonic clock
    prepared: Callable[[], None]  # to be called when the request has become token ids
    submitted: Callable[[], None] = lambda: None  # to be called when the engine's queue has it


@dataclass(frozen=True)
class Header:
    """What is the same in all chunks of an answer."""

    id: str
    created: int
    model: str
    prompt_tokens: int


@dataclass(frozen=True)
class Running:
    """A request that the engine has: its answer as it comes. `text` must be closed."""

    header: Header
    text: TextStream
    prompts: Sequence[list[int]]
    num_choices: int
    sampling: SamplingParams  # with what defaults the request left open

    def usage(self, completion_tokens: int) -> Usage:
        return Usage.of(self.header.prompt_tokens, completion_tokens, self.text.num_cached_tokens)

    def usage_if(self, completion_tokens: int | None) -> Usage | UnsetType:
        """Usage if the number of completion tokens is given."""
        return UNSET if completion_tokens is None else self.usage(completion_tokens)

    async def collect(self, take: Callable[[Delta], None]) -> None:
        """Hand over all pieces of the answer as they come, and close it."""
        try:
            async for batch in self.text.deltas():
                for delta in batch:
                    take(delta)
        finally:
            self.text.close()

    async def events(
        self,
        body: GenerationRequest,
        pieces: Callable[[Delta], Iterable[C]],
        chunk: Callable[[list[C], int | None], msgspec.Struct],
    ) -> AsyncIterator[bytes]:
        """The answer as server-sent events; all that is ready at once leaves in one piece. `pieces` of a delta are the
        choices of a chunk each, and `chunk` makes it, with the number of tokens if they are to be told."""
        async for batch in self.text.deltas():
            num_tokens = self.text.num_tokens if body.wants_running_usage else None
            yield b"".join(as_event(chunk([piece], num_tokens)) for delta in batch for piece in pieces(delta))
        if body.wants_usage:
            yield as_event(chunk([], self.text.num_tokens))


class Serving:
    """One for all handlers. Its methods raise RequestError and its like for what the client can mend."""

    def __init__(
        self,
        bridge: Bridge,
        info: EngineInfo,
        models: Models,
        lanes: Lanes,
        tokenizer: Tokenizer,
        defaults: SamplingDefaults,
        grammars: GrammarCheck,
        config: ServerConfig,
    ) -> None:
        """`lanes` are for the work on large bodies and long texts."""
        self._lanes = lanes
        self._gates = Gates()
        self.tokens = tokens = TokenizerPool(tokenizer, lanes)
        self.names = TokenNames(tokens.tokenizer)
        self._max_sequences = bridge.room.max_sequences
        self.max_model_len = info.max_model_len
        self._bridge = bridge
        self._info = info
        self._models = models
        self._defaults = defaults
        self._grammars = grammars
        self.prompts = Prompts(tokens, info)
        self._max_prompts = config.max_prompts
        self._keep_alive_s = config.sse_keep_alive_s
        self.last_arrival_s = -math.inf  # of a client's request, on the monotonic clock

    async def answer(
        self,
        request: Request,
        parse: Callable[[bytes], B],
        respond: Callable[[B, Arrival], Coroutine[Any, Any, Response]],
    ) -> Response:
        """The response to a request, whose work ends when its client leaves."""
        try:
            body = await receive_body(request)
            self.last_arrival_s = time.monotonic()
            response = await until_disconnect(request.receive, self.respond(request.state.id, body, parse, respond))
        except ClientDisconnect:
            response = None
        return response or Response(status_code=CLIENT_CLOSED_REQUEST)

    async def respond(
        self,
        id: str,
        body: bytes,
        parse: Callable[[bytes], B],
        respond: Callable[[B, Arrival], Coroutine[Any, Any, Response]],
        submitted: Callable[[], None] = lambda: None,
    ) -> Response:
        """The response to a body, whoever sent it. `submitted` is called when the engine's queue has it.

        Where the engine dies before there is a response, nobody has been told of what came: it is begun again.
        """
        time_s, num_lost = time.monotonic(), 0
        while True:
            try:
                async with self._gates.enter(len(body)) as leave:
                    parsed = await read_body(body, parse, self._lanes)
                    return await respond(parsed, Arrival(id, time_s, leave, submitted))
            except EngineLostError as error:
                num_lost += error.num_lost
                if num_lost >= MOST_LOST:
                    raise
            await self._bridge.engine_back()

    def admit(self, body: GenerationRequest, num_prompts: int) -> SamplingParams:
        """Everything that can be checked before the prompt is tokenized. Returns the sampling."""
        self.check_model(body.model)
        body.check()
        sampling = body.sampling(self._defaults)
        if num_prompts > self._max_prompts:
            raise RequestError(
                f"prompt has {num_prompts} entries, more than {self._max_prompts}: send fewer at once.", "prompt"
            )
        if num_prompts * sampling.n > self._max_sequences:  # for good: it would never find room
            made = f"{num_prompts} prompts with n {sampling.n}" if num_prompts > 1 else f"n {sampling.n}"
            raise RequestError(
                f"{made} would make {num_prompts * sampling.n} sequences, more than the {self._max_sequences} that may "
                f"wait: {'send fewer prompts at once or ' if num_prompts > 1 else ''}lower n.",
                "prompt" if num_prompts > 1 else "n",
            )
        self._bridge.check_room(num_prompts * sampling.n)
        limit, limit_name = body.token_limit
        if limit is not None and limit > self.max_model_len:
            raise RequestError(
                f"{limit_name} is {limit}, but this model's maximum context length is {self.max_model_len} tokens: ask "
                "for fewer.",
                limit_name,
            )
        return sampling

    def check_model(self, model: str | None) -> None:
        """Raise ModelNotFoundError unless it is the one that is served."""
        self._models.check(model)

    async def take_form(self, sampling: SamplingParams, form: StructuredOutputs, param: str) -> SamplingParams:
        """The sampling of outputs that have this form, which `param` asks for. Raises RequestError if it cannot be
        enforced, QueueFullError if too many are being checked."""
        if not self._grammars.has_passed(form):
            # A thread of its own: those that wait for others' grammars must not hold up large bodies.
            await in_daemon_thread(lambda: self._grammars.check(form, param))
        return msgspec.structs.replace(sampling, structured_outputs=form)

    async def start(
        self,
        kind: str,
        prompts: Sequence[list[int]],
        sampling: SamplingParams,
        arrival: Arrival,
        *,
        priority: int | None = None,
        cache_salt: str | None = None,
        show_special_tokens: bool = False,
        by_token: bool = False,
    ) -> Running:
        """Hand the prompts to the engine. `kind` is how the answer's id begins. `show_special_tokens`: whatever the
        sampling says, since somebody reads them. `by_token`: as of `TextStream`."""
        if sampling.bad_words:
            num_chars = sum(map(len, sampling.bad_words))
            sampling = await self.tokens.run(lambda: with_bad_words(sampling, self.tokens.tokenizer), num_chars)
        if show_special_tokens:
            sampling = msgspec.structs.replace(sampling, skip_special_tokens=False)
        requests = self._fit(prompts, sampling)
        # What the engine would refuse, which a stream could tell only behind its 200.
        sampling.check_vocabulary(self._info.vocab_size)
        max(requests, key=lambda request: len(request[0]))[1].validate()  # the one with the least room
        check_priority(priority or 0, self._info.has_priorities)

        def make_text(choice: int) -> OutputText:
            return OutputText(self.tokens.tokenizer, prompts[choice // sampling.n], sampling)

        total, most = sum(size_tokens(*request) for request in requests), self._bridge.room.max_tokens
        if total > most:  # for good: they would never find room
            raise RequestError(
                f"Prompts and parameters have {total} tokens, more than the {most} that may wait: send fewer at once.",
                "prompt",
            )
        prompt_tokens = sum(map(len, prompts))
        header = Header(f"{kind}-{arrival.id}", int(time.time()), self._models.name, prompt_tokens)
        stream = self._bridge.submit(unique_id(), requests, arrival.time_s, priority or 0, cache_salt or "")
        arrival.submitted()
        text = TextStream(stream, make_text, self._bridge.metrics, by_token=by_token)
        return Running(header, text, prompts, len(prompts) * sampling.n, sampling)

    def stream(
        self,
        running: Running,
        chunks: AsyncIterator[bytes],
        *,
        failed: Callable[[Exception], bytes] = error_event,
        end: bytes = b"data: [DONE]\n\n",
    ) -> Response:
        """A response of server-sent events. An exception in their midst is an event, too (`failed` makes it): the
        status was sent. `end` comes after all."""
        return EventStream(_until_end(chunks, failed, end), running.text.close, self._keep_alive_s)

    def _fit(self, prompts: Sequence[list[int]], sampling: SamplingParams) -> list[tuple[list[int], SamplingParams]]:
        """An answer without a limit of the client's has all the room that is left. None has more than the checkpoint's
        defaults allow."""
        fitted: dict[int, SamplingParams] = {}
        requests = []
        for prompt in prompts:
            room = self.max_model_len - len(prompt)
            most = room if self._defaults.max_tokens is None else min(room, self._defaults.max_tokens)
            limit = sampling.limit_tokens(most)
            if limit not in fitted:
                fitted[limit] = msgspec.structs.replace(sampling, max_tokens=limit)
            requests.append((prompt, fitted[limit]))
        return requests


async def _until_end(
    chunks: AsyncIterator[bytes], failed: Callable[[Exception], bytes], end: bytes
) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield chunk
    except Exception as error:
        if not isinstance(error, SeesawError):
            logger.exception("a stream failed")
        yield failed(error)
    if end:
        yield end


def as_event(chunk: msgspec.Struct) -> bytes:
    """One server-sent event, which has a name if the struct has a tag."""
    data = b"data: %b\n\n" % _encode(chunk)
    tag = chunk.__struct_config__.tag
    return data if tag is None else b"event: %b\n%b" % (str(tag).encode(), data)


def as_json(answer: msgspec.Struct) -> Response:
    """A whole response."""
    return Response(_encode(answer), media_type="application/json")
