"""Reading a request's JSON body into its model. Called by the handlers.

By hand, not by FastAPI, which parses in the event loop's thread: a body of megabytes would hold up everybody's streams.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from seesaw.engine.values.errors import RequestError
from seesaw.server.openai.protocol.body import SMALL_BODY_BYTES
from seesaw.server.threads import Lanes

M = TypeVar("M", bound=BaseModel)

LONG_BODY_BYTES = 1 << 20


async def receive_body(request: Request) -> bytes:
    """All of it. Raises RequestError if it is no JSON by its type, and ClientDisconnect if the client leaves before it
    is here."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise RequestError("The body must be JSON, sent with Content-Type: application/json.")
    return b"".join([chunk async for chunk in request.stream()])  # `request.body` would keep it


async def read_body(body: bytes, parse: Callable[[bytes], M], lanes: Lanes) -> M:
    """What `parse` makes of the body. Raises RequestError or RequestValidationError if it is bad."""
    try:
        if len(body) <= SMALL_BODY_BYTES:
            return parse(body)
        return await lanes.run(lambda: parse(body), is_long=len(body) > LONG_BODY_BYTES)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None
