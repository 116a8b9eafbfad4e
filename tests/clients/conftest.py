"""A completions server that behaves as a test tells it to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer


def event(text: str, **more: object) -> bytes:
    return sent({"choices": [{"index": 0, "text": text, **more}]})


def delta(finish_reason: str | None = None, **parts: object) -> bytes:
    """A piece of a chat's message."""
    return sent({"choices": [{"index": 0, "delta": parts, "finish_reason": finish_reason}]})


def usage(prompt_tokens: int, completion_tokens: int, **more: object) -> bytes:
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, **more}
    return sent({"choices": [], "usage": counts})


def sent(chunk: dict[str, object]) -> bytes:
    return b"data: %b\n\n" % json.dumps(chunk).encode()


DONE = b"data: [DONE]\n\n"


class Site:
    """Streams `max_tokens` events, or what `answer` holds; refuses with `status`; remembers bodies and headers.

    With `takes_ids` off it is as llama-cpp-python's server: text only, no usage, and no newline after the last event.
    """

    def __init__(self) -> None:
        self.answer: list[bytes] | None = None
        self.status = 200
        self.takes_ids = True
        self.models = b'{"data": [{"id": "org/fake"}]}'
        self.cached_tokens: int | None = None  # of every prompt, if it tells
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.running = self.most_running = 0
        self.expected = 0  # so many requests must be here before any is answered
        self._all_here = asyncio.Event()
        self.most_answered = 1 << 31  # those after so many are `held`, without an answer
        self.held = asyncio.Event()
        app = web.Application(client_max_size=1 << 26)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("")).rstrip("/")

    async def _models(self, _: web.Request) -> web.Response:
        return web.Response(body=self.models, content_type="application/json")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if self.status != 200:
            return web.json_response({"error": {"message": "come back later"}}, status=self.status)
        if not self.takes_ids and isinstance(body.get("prompt"), list):
            problem = f"2 validation errors:\n  {{'msg': 'Input should be a valid string', 'input': {body['prompt']}}}"
            return web.json_response({"error": {"message": problem}}, status=500)
        if len(self.bodies) > self.most_answered:
            self.held.set()
            await asyncio.Event().wait()
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        if self.running >= self.expected:
            self._all_here.set()
        await self._all_here.wait()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for data in self.answer if self.answer is not None else self._whole(body):
            await response.write(data)
        self.running -= 1
        return response

    def _whole(self, body: dict[str, Any]) -> list[bytes]:
        count = body["max_tokens"]
        if "messages" in body:
            pieces = [delta(content="t") for _ in range(count)]
            return [delta(role="assistant", content=""), *pieces, delta("length"), usage(9, count), DONE]
        if not self.takes_ids:
            return [*(event("t") for _ in range(count)), event("", finish_reason="length"), DONE.strip()]
        details = {} if self.cached_tokens is None else {"cached_tokens": self.cached_tokens}
        last = usage(len(body["prompt"]), count, prompt_tokens_details=details or None)
        return [*(event("t") for _ in range(count)), last, DONE]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def site(anyio_backend: str) -> AsyncIterator[Site]:
    site = Site()
    await site.server.start_server()
    yield site
    await site.server.close()
