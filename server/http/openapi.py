"""`/openapi.json`: the document of what is served, made of the very models that read requests and that make answers.

FastAPI's own would lack both, since bodies are read by hand (`server.http.body`) and answers are encoded by msgspec.
A test compares it with the routes, and real requests and answers with it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from seesaw.server.batches.objects import (
    LEAST_LIFE_S,
    LONGEST_LIFE_S,
    Batch,
    BatchList,
    BatchRequest,
    File,
    FileDeleted,
    FileList,
)
from seesaw.server.http.errors import ErrorBody
from seesaw.server.http.middleware import GUARDED
from seesaw.server.openai.models import ModelCard, ModelList
from seesaw.server.openai.protocol.chat import ChatRequest
from seesaw.server.openai.protocol.chat_answer import ChatChunk, ChatCompletion
from seesaw.server.openai.protocol.completions import Completion, CompletionRequest
from seesaw.server.openai.protocol.generation import GenerationRequest
from seesaw.server.openai.protocol.responses import ResponsesRequest
from seesaw.server.openai.protocol.responses_answer import AnyStreamEvent, Response
from seesaw.server.openai.protocol.tokenization import Detokenize, DetokenizedText, TokenizeChat, TokenizeText, Tokens
from seesaw.server.page.status import Status

REF = "#/components/schemas/{}"
REASONS = {
    400: "The client can mend the request",
    401: "The API key is missing or wrong",
    404: "There is no such model, file or batch",
    408: "The request came too slowly",
    409: "It is too late for that",
    413: "The body is too large",
    500: "The engine has failed",
    503: "The engine is busy or does not answer",
    507: "The disk is full",
}
BODY_ERRORS = (400, 404, 408, 413, 503)
GENERATION_ERRORS = (*BODY_ERRORS, 500)


@dataclass(frozen=True)
class Operation:
    """What a client may do at a path."""

    summary: str
    bodies: tuple[type[BaseModel], ...] = ()
    answer: Any = None  # a type of JSON; None is text
    events: Any = None  # the type of a stream's events, if it may be streamed
    errors: tuple[int, ...] = ()
    form: dict[str, Any] | None = None  # the schema of a multipart body
    query: tuple[str, ...] = ()  # parameters that may be left out
    is_binary: bool = False  # the answer


UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": LEAST_LIFE_S, "maximum": LONGEST_LIFE_S},
    },
    "required": ["file", "purpose"],
}
HEALTH = Operation("Whether the engine answers", answer=dict[str, str], errors=(503,))
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("/v1/chat/completions", "post"): Operation(
        "The next message of a conversation", (ChatRequest,), ChatCompletion, ChatChunk, GENERATION_ERRORS
    ),
    ("/v1/responses", "post"): Operation(
        "The next items of a conversation; nothing is stored",
        (ResponsesRequest,),
        Response,
        AnyStreamEvent,
        GENERATION_ERRORS,
    ),
    ("/v1/completions", "post"): Operation(
        "Continuations of prompts", (CompletionRequest,), Completion, Completion, GENERATION_ERRORS
    ),
    ("/v1/models", "get"): Operation("The model, by each of its names", answer=ModelList),
    ("/v1/models/{model}", "get"): Operation("The model, by one of its names", answer=ModelCard, errors=(404,)),
    ("/v1/files", "post"): Operation("Keep a file", answer=File, errors=(400, 413, 507), form=UPLOAD),
    ("/v1/files", "get"): Operation(
        "Files, the newest first", answer=FileList, errors=(400,), query=("after", "limit", "order", "purpose")
    ),
    ("/v1/files/{file_id}", "get"): Operation("What a file is", answer=File, errors=(404,)),
    ("/v1/files/{file_id}", "delete"): Operation("Keep a file no longer", answer=FileDeleted, errors=(404, 507)),
    ("/v1/files/{file_id}/content", "get"): Operation("What a file holds", errors=(404,), is_binary=True),
    ("/v1/batches", "post"): Operation(
        "Make the requests of a file, when there is time", (BatchRequest,), Batch, errors=(*BODY_ERRORS, 507)
    ),
    ("/v1/batches", "get"): Operation(
        "Batches, the newest first", answer=BatchList, errors=(400,), query=("after", "limit")
    ),
    ("/v1/batches/{batch_id}", "get"): Operation("How a batch is now", answer=Batch, errors=(404,)),
    ("/v1/batches/{batch_id}/cancel", "post"): Operation(
        "Make no more requests of a batch", answer=Batch, errors=(404, 409)
    ),
    ("/tokenize", "post"): Operation(
        "The tokens of a text or of a conversation", (TokenizeText, TokenizeChat), Tokens, errors=BODY_ERRORS
    ),
    ("/detokenize", "post"): Operation("The text of tokens", (Detokenize,), DetokenizedText, errors=BODY_ERRORS),
    ("/tokenizer_info", "get"): Operation("The tokenizer's configuration", answer=dict[str, Any]),
    ("/reset_prefix_cache", "post"): Operation("Forget all cached prefixes", answer=dict[str, str], errors=(500, 503)),
    ("/health", "get"): HEALTH,
    ("/ready", "get"): Operation(
        "Whether a request that came now would be taken", answer=dict[str, str], errors=(503,)
    ),
    ("/ping", "get"): HEALTH,
    ("/ping", "post"): HEALTH,
    ("/load", "get"): Operation("How many requests there are", answer=dict[str, int]),
    ("/status", "get"): Operation(
        "What the server does now, and did in the last minutes", answer=Status, errors=(400,), query=("after",)
    ),
    ("/version", "get"): Operation("The server's version", answer=dict[str, str]),
    ("/metrics", "get"): Operation("Metrics in Prometheus' format"),
}

JOB_PATHS = tuple({path: None for path, _ in OPERATIONS if path.startswith(("/v1/files", "/v1/batches"))})


def make_document(title: str, version: str, *, has_keys: bool, without: Collection[str] = ()) -> dict[str, Any]:
    """The OpenAPI document. `has_keys`: some paths need an API key. `without`: paths that are not served."""
    refs, components = _schemas()
    paths: dict[str, dict[str, Any]] = {}
    for (path, method), operation in OPERATIONS.items():
        if path in without:
            continue
        paths.setdefault(path, {})[method] = _describe(
            path, operation, refs, needs_key=has_keys and GUARDED.match(path) is not None
        )
    document = {
        "openapi": "3.1.0",
        "info": {"title": title, "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }
    if has_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}  # type: ignore[index]
    return document


def _describe(path: str, operation: Operation, refs: dict[Any, Any], needs_key: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary}
    refused = {name for body in operation.bodies if issubclass(body, GenerationRequest) for name in body.unsupported}
    if refused and operation.events is not None:
        described["description"] = (
            "Other parameters are ignored, but for these, which are refused unless they ask for nothing: "
            f"{', '.join(sorted(refused))}."
        )
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in operation.query]
    if parameters:
        described["parameters"] = parameters
    if operation.bodies:
        schemas = [refs[body] for body in operation.bodies]
        schema = schemas[0] if len(schemas) == 1 else {"anyOf": schemas}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if operation.form is not None:
        described["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": operation.form}}}
    content: dict[str, Any] = {"text/plain": {"schema": {"type": "string"}}}
    if operation.is_binary:
        content = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if operation.answer is not None:
        content = {"application/json": {"schema": refs[operation.answer]}}
    if operation.events is not None:
        content["text/event-stream"] = {"schema": refs[operation.events]}
    described["responses"] = {"200": {"description": "Success", "content": content}}
    for status in sorted({*operation.errors, *((401,) if needs_key else ())}):
        error = {"application/json": {"schema": refs[ErrorBody]}}
        described["responses"][str(status)] = {"description": REASONS[status], "content": error}
    if needs_key:
        described["security"] = [{"key": []}]
    return described


def _schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """The schema of each type that is sent, by the type, and what these refer to, by name."""
    operations = OPERATIONS.values()
    bodies = list(dict.fromkeys(body for operation in operations for body in operation.bodies))
    sent = (each for operation in operations for each in (operation.answer, operation.events))
    answers = [each for each in dict.fromkeys((*sent, ErrorBody)) if each is not None]
    of_bodies, definitions = models_json_schema(
        [(body, "validation") for body in bodies], ref_template=REF.format("{model}")
    )
    of_answers, parts = msgspec.json.schema_components(answers, ref_template=REF.format("{name}"))
    # Names that requests and answers both have get endings, as FastAPI gives them.
    both = definitions["$defs"].keys() & parts.keys()
    read = _with_ending("-Input", both, {b: of_bodies[b, "validation"] for b in bodies}, definitions["$defs"])
    made = _with_ending("-Output", both, dict(zip(answers, of_answers, strict=True)), parts)
    return read[0] | made[0], dict(sorted((read[1] | made[1]).items()))


def _with_ending(
    ending: str, names: Set[str], schemas: dict[Any, Any], components: dict[str, Any]
) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The same, with this ending to the components of these names."""
    refs = {REF.format(name): REF.format(name + ending) for name in names}

    def renamed(value: Any) -> Any:
        match value:
            case dict():
                return {key: renamed(each) for key, each in value.items()}
            case list():
                return [renamed(each) for each in value]
            case str():
                return refs.get(value, value)
        return value

    named = {name + ending if name in names else name: renamed(schema) for name, schema in components.items()}
    return renamed(schemas), named
