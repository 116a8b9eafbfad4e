"""A row's way through the very code that answers HTTP requests, to the same status and body."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
from fastapi import Response
from fastapi.exceptions import RequestValidationError

from seesaw.engine.values.errors import EngineDeadError, QueueFullError, RequestError, SeesawError
from seesaw.server.http.errors import describe
from seesaw.server.link.errors import RestartingError, ShuttingDownError
from seesaw.server.openai.serving import Arrival

logger = logging.getLogger(__name__)


class Endpoint(Protocol):
    """A handler of generation (`server.openai`)."""

    def parse(self, raw: bytes) -> Any:
        """A body, which `respond` takes."""

    async def respond(self, body: Any, arrival: Arrival) -> Response: ...


class Respond(Protocol):
    """`server.openai.serving.Serving.respond`."""

    def __call__(
        self,
        id: str,
        body: bytes,
        parse: Callable[[bytes], Any],
        respond: Callable[[Any, Arrival], Coroutine[Any, Any, Response]],
        submitted: Callable[[], None],
    ) -> Coroutine[Any, Any, Response]: ...


class Answer(NamedTuple):
    status: int
    body: bytes  # JSON in one line


class Answering:
    """Answers rows of any endpoint."""

    def __init__(self, respond: Respond, endpoints: Mapping[str, Endpoint], priority: int | None = None) -> None:
        """`priority`: of every row, whatever its body says, if the engine knows priorities."""
        self._respond = respond
        self._endpoints = endpoints
        self.urls = tuple(endpoints)
        self._priority = priority

    async def answer(self, url: str, id: str, raw: bytes, submitted: Callable[[], None]) -> Answer:
        """What a client would be told who sent this body there. `submitted` is called when the engine's queue has it.

        Raises QueueFullError, RestartingError, EngineDeadError or ShuttingDownError, which say nothing of the row.
        """
        endpoint = self._endpoints[url]

        def parse(raw: bytes) -> Any:
            body = endpoint.parse(raw)
            if body.stream:
                raise RequestError("stream is not for batches: leave it out.", "stream")
            if self._priority is not None:
                body.priority = self._priority
            return body

        try:
            response = await self._respond(id, raw, parse, endpoint.respond, submitted)
        except (QueueFullError, RestartingError, EngineDeadError, ShuttingDownError):
            raise
        except Exception as error:
            if not isinstance(error, SeesawError | RequestValidationError):
                logger.exception("a row of a batch failed")
            info = describe(error)
            return Answer(info.status, msgspec.json.encode(info.body))
        return Answer(response.status_code, bytes(response.body))
