"""Reading a request's JSON body into its model. Called by the handlers.

By hand, not by FastAPI, which parses in the event loop's thread: a body of megabytes would hold up everybody's streams.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from engine.errors import RequestError

M = TypeVar("M", bound=BaseModel)

# Parsing so much takes about 5 ms; more is parsed in a thread.
LARGE_BODY_BYTES = 256 << 10


async def read_body(request: Request, model: type[M], context: dict[str, Any]) -> M:
    """The body as a `model`, whose validators see `context`. Raises RequestError and RequestValidationError, and
    ClientDisconnect if the client leaves before the body is here."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise RequestError("The body must be JSON, sent with Content-Type: application/json.")
    raw = await request.body()
    if len(raw) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(_parse, raw, model, context)
    return _parse(raw, model, context)


def _parse(raw: bytes, model: type[M], context: dict[str, Any]) -> M:
    try:
        return model.model_validate_json(raw, context=context)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from None
