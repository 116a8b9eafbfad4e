"""A bridge with a fake engine behind it, an application over them, and clients of both kinds."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from starlette.types import ASGIApp

from seesaw.engine.sampling.defaults import NO_DEFAULTS, SamplingDefaults
from seesaw.engine.text.tokenizer import ByteTokenizer, Tokenizer
from seesaw.engine.values.errors import EngineDeadError
from seesaw.engine.wire.messages import EngineInfo, Ready
from seesaw.server.config import ServerConfig
from seesaw.server.http.app import create_app
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.channel import Channel
from seesaw.server.link.grammar_check import GrammarCheck
from seesaw.server.service import make_http_server
from tests.server.fake_engine import INFO, FakeEngine, short_dir


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Line:
    """Both ends of the line between server and engine."""

    bridge: Bridge
    channel: Channel
    engine: FakeEngine


@asynccontextmanager
async def connected(
    max_queued_requests: int = 100, max_queued_tokens: int = 10_000, info: EngineInfo = INFO
) -> AsyncIterator[Line]:
    bridge = Bridge(max_queued_requests=max_queued_requests, max_queued_tokens=max_queued_tokens)
    async with attached(bridge, info) as line:
        yield line
        bridge.fail(EngineDeadError("The engine is being stopped."))


@asynccontextmanager
async def attached(bridge: Bridge, info: EngineInfo = INFO) -> AsyncIterator[Line]:
    """An engine for a bridge that has none."""
    folder = short_dir()
    addresses = f"ipc://{folder}/down", f"ipc://{folder}/up"
    channel = Channel(*addresses, bridge.take_news)
    channel.start()
    engine = FakeEngine(*addresses)
    try:
        await engine.send(Ready(info))
        await channel.ready()
        bridge.attach(channel)
        yield Line(bridge, channel, engine)
    finally:
        await channel.close()
        await engine.close()
        shutil.rmtree(folder)


@pytest.fixture
async def line(anyio_backend: str) -> AsyncIterator[Line]:
    async with connected() as line:
        yield line


@dataclass
class Site:
    """An application with its engine, and an in-process client of it."""

    bridge: Bridge
    engine: FakeEngine
    client: httpx.AsyncClient

    async def complete(self, **body: object) -> httpx.Response:
        return await self.client.post("/v1/completions", json=body)

    async def chat(self, *messages: object, **body: object) -> httpx.Response:
        """Of messages, or of one that says `hi`."""
        conversation = list(messages) or [{"role": "user", "content": "hi"}]
        return await self.client.post("/v1/chat/completions", json={"messages": conversation} | body)


# Short, since the fake engine's context is: `u:hi;a:`.
TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)


def chat_config(**options: object) -> ServerConfig:
    return ServerConfig(**{"served_model_name": ("fake",), "chat_template": TEMPLATE, **options})  # type: ignore[arg-type]


MakeSite = Callable[..., Awaitable[Site]]


@pytest.fixture
async def make_site(anyio_backend: str) -> AsyncIterator[MakeSite]:
    async with AsyncExitStack() as stack:

        async def make(
            config: ServerConfig | None = None,
            max_queued_requests: int = 100,
            tokenizer: Tokenizer | None = None,
            defaults: SamplingDefaults = NO_DEFAULTS,
            info: EngineInfo = INFO,
        ) -> Site:
            line = await stack.enter_async_context(connected(max_queued_requests, info=info))
            config = config or ServerConfig(served_model_name=("fake",))
            grammars = GrammarCheck("bytes", info.vocab_size)
            stack.callback(grammars.close)
            app = create_app(line.bridge, info, tokenizer or ByteTokenizer(), config, grammars, defaults)
            transport = httpx.ASGITransport(app)
            client = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))
            return Site(line.bridge, line.engine, client)

        yield make


@pytest.fixture
async def site(make_site: MakeSite) -> Site:
    return await make_site()


@pytest.fixture
async def port(line: Line) -> AsyncIterator[int]:
    """A real HTTP server over `line`, on a free port."""
    config = chat_config(enable_auto_tool_choice=True, tool_call_parser="hermes")
    app = create_app(line.bridge, INFO, ByteTokenizer(), config, GrammarCheck("bytes", INFO.vocab_size))
    async with listening(app, config) as port:
        yield port


@asynccontextmanager
async def listening(app: ASGIApp, config: ServerConfig, listener: socket.socket | None = None) -> AsyncIterator[int]:
    """An application over a real socket; its port."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    server = make_http_server(app, config)
    server.config.timeout_graceful_shutdown = 1
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
