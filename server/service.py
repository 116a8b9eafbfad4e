"""`seesaw serve` from start to end: the listening socket, the engine process, the HTTP server, and their ends.

Order matters: the port is taken before anything slow starts, signals are handled before there is anything
to clean up, and whatever happens, the engine process is ended last.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import resource
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from seesaw.engine.awake import waits
from seesaw.engine.heap import tame_collector
from seesaw.engine.logs import start_log
from seesaw.engine.printing import print_in_background
from seesaw.engine.supervision import adopt_orphans
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import EngineInfo
from seesaw.server.backend import StartEngine, check_settings, make_backend, start_backend
from seesaw.server.batches.folder import check_data_dir
from seesaw.server.config import ServerConfig
from seesaw.server.http.app import create_app
from seesaw.server.http.connection import connection_class
from seesaw.server.http.sockets import BACKLOG, base_url, bound, check_tls, listen
from seesaw.server.keeper import EngineKeeper
from seesaw.server.link.bridge import Bridge
from seesaw.server.link.errors import ShuttingDownError
from seesaw.server.link.grammar_check import GrammarCheck
from seesaw.server.openai.models import model_names
from seesaw.server.settings import API_KEY_VARIABLE

WITH_FIRST_S = 0.5  # between a signal and its like that belong together
FLUSH_S = 3.0  # for clients to take their last words
MAX_OPEN_FILES = 65536  # each connection is one
# Without a descriptor left asyncio waits a second before it accepts again, but not before it has tried so often. It
# makes this the length of the kernel's queue, too, which is set right behind it.
ACCEPTED_AT_ONCE = 1
CERTIFICATES = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def serve(engine: EngineConfig, server: ServerConfig, start_engine: StartEngine | None = None) -> int:
    """Serve until a signal comes (returns 0) or an engine dies for good, before it or while requests have time to end
    (1).

    Raises ConfigError, or EngineDeadError if the engine dies before it is ready.
    """
    start_log("%(asctime)s %(levelname)s %(name)s: %(message)s", server.log_level.upper())
    logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.getLogger().level))
    _raise_open_files()
    check_settings(engine, server)
    check_tls(server)
    check_data_dir(server)
    with bound(server) as listener:
        print_in_background()
        return asyncio.run(_serve(engine, server, listener, start_engine))


async def _serve(
    engine: EngineConfig, server: ServerConfig, listener: socket.socket, start_engine: StartEngine | None
) -> int:
    adopt_orphans()
    stop = StopSignal()
    report = _timed_report()
    report("starting the engine")
    bridge, keeper = make_backend(engine, server, report, start_engine)
    stop.on_second = keeper.kill
    try:
        starting = asyncio.ensure_future(start_app(engine, server, bridge, keeper))
        first = await _first(starting, stop.requested)
        if first is stop.requested:
            starting.cancel()
            return 0
        app, info, grammars = starting.result()
        tame_collector()
        report("ready")
        return await _run(make_http_server(app, server), info, grammars, server, listener, bridge, keeper, stop)
    finally:
        await keeper.close()


async def start_app(
    engine: EngineConfig, server: ServerConfig, bridge: Bridge, keeper: EngineKeeper
) -> tuple[FastAPI, EngineInfo, GrammarCheck]:
    """The application, once the engine is ready. The tokenizer loads beside the engine.

    Raises ConfigError, or EngineDeadError if the engine dies meanwhile.
    """
    info, tokenizer, grammars, defaults = await start_backend(engine, server, keeper)
    return create_app(bridge, info, tokenizer, server, grammars, defaults), info, grammars


def make_http_server(app: ASGIApp, server: ServerConfig) -> HTTPServer:
    """Serves an application as configured."""
    config = uvicorn.Config(
        app,
        access_log=server.access_log,
        log_config=None,
        http=connection_class(server),
        ws="none",
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=server.keep_alive_s,  # type: ignore[arg-type]  # a fraction of a second is a time, too
        ssl_certfile=server.ssl_certfile or None,
        ssl_keyfile=server.ssl_keyfile or None,
        ssl_ca_certs=server.ssl_ca_certs or None,
        ssl_cert_reqs=CERTIFICATES[server.ssl_cert_reqs],
    )
    return HTTPServer(config)


async def _run(
    http: HTTPServer,
    info: EngineInfo,
    grammars: GrammarCheck,
    server: ServerConfig,
    listener: socket.socket,
    bridge: Bridge,
    keeper: EngineKeeper,
    stop: StopSignal,
) -> int:
    listen(server, listener)
    serving = asyncio.ensure_future(http.serve(sockets=[listener]))
    dying = asyncio.ensure_future(keeper.keep())
    print(banner(server, listener, info))
    first = await _first(dying, stop.requested, serving)
    if first is stop.requested:
        _report("stopping; press Ctrl-C again to stop at once")
    keeper.keep_no_longer()
    http.should_exit = True  # accepts nothing more; connections close as their responses end
    if first is stop.requested and server.shutdown_timeout_s and bridge.has_engine:
        _report(f"stopping; requests in flight have {server.shutdown_timeout_s:g} s to end")
        await _any_done(server.shutdown_timeout_s, serving, dying)
    died = dying.done()
    if died:
        _report(f"error: {dying.result()}")
    bridge.fail(ShuttingDownError("The server is shutting down; send the request again later."))
    grammars.close()  # requests wait for it, too
    await _any_done(FLUSH_S, serving)
    for task in (serving, dying):
        task.cancel()
    await asyncio.gather(serving, dying, return_exceptions=True)
    return 0 if first is stop.requested and not died else 1


class HTTPServer(uvicorn.Server):
    """uvicorn without its signal handlers, which know nothing of the engine."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class StopSignal:
    """SIGINT, SIGTERM and SIGHUP: the first one completes `requested`, the second ends the process at once.

    It is no second one that comes with the first: `timeout` sends to its child and then to the whole group, and systemd
    may send a SIGHUP along.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.requested: asyncio.Future[int] = loop.create_future()  # its number
        self.on_second: Callable[[], object] = lambda: None
        self._first_s = math.inf
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or a shell of jobs in the background
                loop.add_signal_handler(number, self._handle, number)

    def _handle(self, number: int) -> None:
        if not self.requested.done():
            self.requested.set_result(number)
            self._first_s = time.monotonic()
        elif number != signal.SIGHUP and time.monotonic() - self._first_s > WITH_FIRST_S:
            self.on_second()
            os._exit(128 + number)


def banner(server: ServerConfig, listener: socket.socket, info: EngineInfo) -> str:
    """What the operator reads when the server is ready."""
    name, *others = model_names(server, info)
    url = base_url(server, listener)
    where = f"unix:{server.uds}" if server.uds else f"{url}/v1"
    curl = f"curl --unix-socket {server.uds} {url}" if server.uds else f"curl {url}"
    layouts = f"{info.prefill} (prefill), {info.decode} (decode)" + (f", {info.tail} (tail)" if info.tail else "")
    if info.prefill == info.decode and not info.tail:
        layouts = f"{info.prefill}, never switching"
    body = json.dumps({"model": name, "prompt": "The capital of France is", "max_tokens": 32})
    # The shell that reads this may know the variable if this one does; the key itself does not belong in logs.
    key = f"${API_KEY_VARIABLE}" if os.environ.get(API_KEY_VARIABLE) in server.api_key else "YOUR_KEY"
    header = f' -H "Authorization: Bearer {key}"' if server.api_key else ""
    page = [f"  page       {url}/"] if server.page and not server.uds else []
    also = f" (also as {', '.join(others)})" if others else ""
    return "\n".join(
        [
            f"Seesaw serves {name}{also} at {where}",
            f"  layouts    {layouts}; weights {info.weights}, {info.dtype} on {info.device}",
            f"  device KV  {_pool(info.device_blocks, info.device_block_bytes, info.block_size)} on each device",
            f"  host KV    {_pool(info.host_blocks, info.host_block_bytes, info.block_size)}",
            f"  context    {info.max_model_len} tokens",
            *page,
            f"  try        {curl}/v1/completions{header} -H 'Content-Type: application/json' -d '{body}'",
        ]
    )


def _pool(num_blocks: int, block_bytes: int, block_size: int) -> str:
    if not num_blocks:
        return "none"
    return f"{num_blocks} blocks = {num_blocks * block_size} tokens, {num_blocks * block_bytes / 2**20:.0f} MiB"


def _raise_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(MAX_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _any_done(timeout_s: float, *futures: asyncio.Future[Any]) -> None:
    """Wait until one of them is done, or this process has run for so long."""
    for wait_s in waits(timeout_s):
        if (await asyncio.wait(futures, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED))[0]:
            return


async def _first(*futures: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """The first of them that is done; of several, the one named first."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
    return next(future for future in futures if future.done())


def _timed_report() -> Callable[[str], None]:
    """`_report` with the seconds since now, which show where a start spends its time."""
    start_s = time.monotonic()
    return lambda line: _report(f"{time.monotonic() - start_s:5.1f} s: {line}")


def _report(line: str) -> None:
    print(f"seesaw: {line}", file=sys.stderr)
