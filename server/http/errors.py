"""One mapping from exceptions to HTTP: a status and OpenAI's body `{"error": {message, type, param, code}}`.

Registered by `server.http.app`; streams (`server.openai.completions`) use `describe` for errors after the headers.
"""

from __future__ import annotations

import json
import logging
import re
from http import HTTPStatus
from typing import NamedTuple, TypedDict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from seesaw.engine.values.errors import EngineDeadError, QueueFullError, RequestError, SeesawError
from seesaw.server.link.errors import EngineLostError, GenerationError, RestartingError, ShuttingDownError

logger = logging.getLogger(__name__)

MAX_VALIDATION_ERRORS = 10
MAX_MESSAGE_CHARS = 300
RETRY_AFTER_S = 1
ENDPOINTS = (
    "Use POST /v1/chat/completions, /v1/responses, /v1/completions, /tokenize, /detokenize or /reset_prefix_cache, "
    "or GET /v1/models, /health, /ready, /load, /metrics or /version; with --data-dir also /v1/files and /v1/batches."
)
# What must be asked for at the start, by how a path ends or begins.
TOKENIZER_INFO = "Start the server with --enable-tokenizer-info-endpoint."
JOBS = "Files and batches need a folder to be kept in: start the server with --data-dir FOLDER."


class NotFoundError(RequestError):
    """The request names something that is not there."""


class ModelNotFoundError(NotFoundError):
    """The request names a model that is not served."""


class ConflictError(RequestError):
    """What the request wants is not possible any more."""


class NoRoomError(SeesawError):
    """The disk is full."""


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None  # what the client should change, as a dotted path
    code: int  # the status


class ErrorBody(TypedDict):
    error: ErrorDetail


class ErrorInfo(NamedTuple):
    """What a client is told."""

    status: int
    message: str
    param: str | None = None
    headers: dict[str, str] | None = None

    @property
    def body(self) -> ErrorBody:
        kind = re.sub(r"[^A-Za-z]", "", HTTPStatus(self.status).phrase.title()).removesuffix("Error") + "Error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.status}}

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def describe(error: Exception) -> ErrorInfo:
    """The status and message for an exception. What is our own fault is not explained to clients."""
    match error:
        case NotFoundError():
            return ErrorInfo(404, _bounded(str(error)), error.param)
        case ConflictError():
            return ErrorInfo(409, str(error), error.param)
        case NoRoomError():
            return ErrorInfo(507, str(error))
        case RequestError():
            return ErrorInfo(400, _bounded(str(error)), error.param)
        case QueueFullError() | ShuttingDownError():
            return ErrorInfo(503, str(error), headers={"Retry-After": str(RETRY_AFTER_S)})
        case RestartingError():
            return ErrorInfo(503, str(error), headers={"Retry-After": str(error.back_in_s)})
        case EngineLostError():
            return ErrorInfo(
                500,
                "The engine stopped before the answer was complete, and is being restarted; send the request again.",
            )
        case EngineDeadError():
            return ErrorInfo(500, "The engine has stopped; nothing more will be generated until a restart.")
        case GenerationError():
            return ErrorInfo(500, str(error))
        case HTTPException():
            headers = dict(error.headers) if error.headers else None
            return ErrorInfo(error.status_code, _bounded(str(error.detail)), headers=headers)
        case RequestValidationError():
            return _describe_validation(error)
        case _:
            return ErrorInfo(500, "Internal server error.")


def install(app: FastAPI) -> None:
    """Answer every exception of the app by `describe`."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        if isinstance(error, HTTPException) and error.status_code == 404:
            use = TOKENIZER_INFO if request.url.path.endswith("/tokenizer_info") else ENDPOINTS
            use = JOBS if re.search(r"/v1/(files|batches)(/|$)", request.url.path) else use
            return ErrorInfo(404, _bounded(f"There is no {request.url.path} here. {use}")).response
        if isinstance(error, HTTPException) and error.status_code == 405:
            headers = Headers(error.headers)
            sentence = (
                f"{request.url.path} does not take {request.method}: use {headers.get('allow', 'another method')}."
            )
            return ErrorInfo(405, _bounded(sentence), headers=dict(headers)).response
        return describe(error).response

    # By type, since a handler for Exception runs outside all middleware and logs a traceback.
    for kind in (SeesawError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, answer)


def _describe_validation(error: RequestValidationError) -> ErrorInfo:
    """Bounded, and without the inputs: a body echoed once per error made megabytes of a kilobyte elsewhere."""
    errors = error.errors()
    sentences, params = [], []
    for each in errors[:MAX_VALIDATION_ERRORS]:
        if each["type"] == "json_invalid":
            reason = each.get("ctx", {}).get("error", "")
            return ErrorInfo(400, _bounded(f"The body is not valid JSON: {reason}."))
        param = ".".join(_bounded(str(part), 50) for part in each["loc"])
        message = each["msg"].removeprefix("Value error, ")
        if each["type"] == "missing":
            sentences.append(f"{param} is missing: add it to the body")
        elif param:
            sentences.append(_bounded(f"{param}: {message}"))
        else:
            sentences.append("The body must be a JSON object")
        params.append(param)
    if len(errors) > MAX_VALIDATION_ERRORS:
        sentences.append(f"and {len(errors) - MAX_VALIDATION_ERRORS} more errors")
    return ErrorInfo(400, "; ".join(sentences), params[0] or None)


def _bounded(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def error_event(error: Exception) -> bytes:
    """An error as a server-sent event, for a stream whose status was sent already."""
    return b"data: " + json.dumps(describe(error).body).encode() + b"\n\n"
