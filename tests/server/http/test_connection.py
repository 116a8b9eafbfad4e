"""Connections over real sockets: those that are late, too large or too many, and those that take nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import socket
from asyncio import StreamReader, StreamWriter

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from seesaw.server.config import ServerConfig
from seesaw.server.http import connection
from seesaw.server.http.middleware import BodyLimit
from tests.patience import PATIENCE_S
from tests.server.conftest import listening

pytestmark = pytest.mark.anyio

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HALF_BODY = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
LATE = ServerConfig(header_timeout_s=0.05, body_timeout_s=0.05)


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers once the whole body is here."""
    if scope["type"] == "http":
        await Request(scope, receive).body()
        await PlainTextResponse("hello")(scope, receive, send)


async def endless(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends as fast as somebody takes it, and tells when that is over."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        sending = asyncio.ensure_future(_flood(send))
        await receive()
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()
        over.set()


async def _flood(send: Send) -> None:
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


over = asyncio.Event()


async def connect(port: int, *sent: bytes) -> tuple[StreamReader, StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in sent:
        writer.write(part)
        await writer.drain()
    return reader, writer


async def answers(port: int, *sent: bytes) -> list[bytes]:
    """The statuses of all that comes until the server closes the connection."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, *sent)
        got = await reader.read()
        writer.close()
    return [part[:3] for part in got.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"", [b"408"]),
        (b"GET / HT", [b"408"]),
        (GET[:-2], [b"408"]),
        (HALF_BODY, [b"408"]),
        (GET + HALF_BODY, [b"200", b"408"]),
    ],
)
async def test_who_is_late_is_cut_off(sent: bytes, statuses: list[bytes]) -> None:
    async with listening(hello, LATE) as port:
        assert await answers(port, sent) == statuses


async def test_who_is_late_with_another_request_is_cut_off() -> None:
    async with listening(hello, LATE) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, GET)
        assert (await reader.readuntil(b"hello"))[9:12] == b"200"
        writer.write(GET[:9])
        assert (await reader.read())[9:12] == b"408"
        writer.close()


@pytest.mark.parametrize("path", [b"/", b"/v1/files/x", b"/other/v1/files"])
async def test_a_body_that_comes_bit_by_bit_has_no_more_time(path: bytes) -> None:
    async with listening(hello, ServerConfig(body_timeout_s=0.2)) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n" % path)
        reading = asyncio.create_task(reader.read())
        while not reading.done():
            writer.write(b"x")
            await asyncio.sleep(0.01)
        with contextlib.suppress(ConnectionResetError):  # by a byte that came when it had been closed
            assert reading.result()[9:12] == b"408"
        writer.close()


async def test_a_file_that_comes_bit_by_bit_has_all_time() -> None:
    head = b"POST /llm/v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    config = ServerConfig(body_timeout_s=0.5, root_path="/llm")
    async with listening(hello, config) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, head % 100)
        for _ in range(100):
            writer.write(b"x")
            await asyncio.sleep(0.01)
        assert (await reader.readuntil(b"hello"))[9:12] == b"200"
        writer.write(head % 100)
        assert (await reader.read())[9:12] == b"408"
        writer.close()


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def path(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await PlainTextResponse(scope["path"])(scope, receive, send)

    async with listening(path, ServerConfig()) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, b"".join(GET.replace(b"/ ", b"/%d " % number) for number in range(9)))
        for number in range(9):
            await reader.readuntil(b"\r\n\r\n/%d" % number)
        writer.close()


async def test_who_was_answered_before_the_body_was_here_hears_nothing_more() -> None:
    async def early(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await PlainTextResponse("no", 404)(scope, receive, send)

    async with listening(early, LATE) as port:
        assert await answers(port, HALF_BODY) == [b"404"]


@pytest.mark.parametrize(
    ("chunk", "number", "status"),
    [
        (b"1\r\nx\r\n", connection.FREE_CHUNKS, b"200"),
        (b"1\r\nx\r\n", 2 * connection.FREE_CHUNKS, b"400"),
        (b"40\r\n" + b"x" * 0x40 + b"\r\n", 2 * connection.FREE_CHUNKS, b"200"),
    ],
)
async def test_chunks_may_be_small_or_many(chunk: bytes, number: int, status: bytes) -> None:
    post = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with listening(hello, ServerConfig()) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port)
        writer.write(post + chunk * number + b"0\r\n\r\n")
        assert (await reader.readline())[9:12] == status
        writer.close()


async def test_a_body_with_two_lengths_is_refused_with_all_that_follows() -> None:
    limit = BodyLimit(hello, max_body_bytes=100, max_total_body_bytes=100, max_file_bytes=100)
    post = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    async with listening(limit, ServerConfig()) as port:
        assert await answers(port, post + GET) == [b"400"]


async def test_an_upgrade_that_is_not_known_is_a_request_like_others() -> None:
    async def echo(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await PlainTextResponse(await Request(scope, receive).body())(scope, receive, send)

    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    post = b"POST / HTTP/1.1\r\nHost: x\r\n%bContent-Length: 6\r\n\r\nasked!"
    async with listening(echo, ServerConfig()) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, post % offer + post % b"")
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\nasked!")
        writer.close()


async def test_what_comes_behind_a_request_does_not_take_its_answer() -> None:
    async with listening(hello, ServerConfig()) as port:
        assert await answers(port, GET + b"garbage\r\n\r\n") == [b"200", b"400"]


@pytest.mark.parametrize("target", [b"CONNECT x:1", b"GET http://", b"GET http://a:99999999/x"])
async def test_no_target_ends_a_connection_without_an_answer(target: bytes) -> None:
    async with listening(hello, ServerConfig(keep_alive_s=0.05)) as port:
        assert len(await answers(port, target + b" HTTP/1.1\r\nHost: x\r\n\r\n")) == 1


async def test_a_connection_that_rests_between_requests_is_not_late() -> None:
    async with listening(hello, ServerConfig(header_timeout_s=0.01, keep_alive_s=PATIENCE_S)) as port:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await connect(port, GET)
            await reader.readuntil(b"hello")
            await asyncio.sleep(0.05)
            writer.write(GET)
            await reader.readuntil(b"hello")
            writer.close()


async def test_heads_are_bounded_also_those_that_come_at_once() -> None:
    long = b"GET / HTTP/1.1\r\nHost: x\r\nX: %b\r\n\r\n"
    fixed = len(long) - 2
    async with listening(hello, ServerConfig(max_header_bytes=4096, keep_alive_s=0.01)) as port:
        assert await answers(port, long % (b"x" * (4096 - fixed))) == [b"200"]
        assert await answers(port, long % (b"x" * (4097 - fixed))) == [b"431"]
        assert await answers(port, (long % (b"x" * 70_000))[:-2]) == [b"431"]
    async with listening(hello, ServerConfig(keep_alive_s=0.01)) as port:
        assert await answers(port, long % (b"x" * 70_000)) == [b"431"]
    async with listening(hello, ServerConfig(max_header_bytes=100_000, keep_alive_s=0.01)) as port:
        assert await answers(port, long % (b"x" * 90_000)) == [b"200"]


async def test_what_is_no_request_is_told_so_in_openais_shape() -> None:
    async with listening(hello, ServerConfig()) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, b"hello\r\n\r\n")
        head, body = (await reader.read()).split(b"\r\n\r\n")
        assert head[9:12] == b"400" and json.loads(body)["error"]["code"] == 400
        writer.close()


async def test_connections_are_bounded() -> None:
    async with listening(hello, ServerConfig(max_connections=1)) as port, asyncio.timeout(PATIENCE_S):
        reader, writer = await connect(port, GET)
        await reader.readuntil(b"hello")
        other, other_writer = await connect(port)
        refused = await other.read()
        assert refused[9:12] == b"503" and b"retry-after: 1\r\n" in refused
        other_writer.close()
        writer.close()
        await writer.wait_closed()
        while await answers(port, GET[:-2] + b"Connection: close\r\n\r\n") != [b"200"]:
            pass  # the server has not yet heard that the first is gone


async def test_who_takes_nothing_of_an_answer_is_cut_off() -> None:
    over.clear()
    async with listening(endless, ServerConfig(send_timeout_s=0.05)) as port, asyncio.timeout(PATIENCE_S):
        _, writer = await connect(port, GET)
        await over.wait()
        writer.close()


class Full(socket.socket):
    """A listener that finds no descriptor for whoever knocks."""

    tries = 0

    def accept(self) -> tuple[socket.socket, object]:
        self.tries += 1
        raise OSError(errno.EMFILE, "Too many open files")


async def test_without_a_descriptor_the_server_waits_before_it_accepts_again() -> None:
    told = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda *_: told.set())
    listener = Full()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    async with listening(hello, ServerConfig(), listener) as port, asyncio.timeout(PATIENCE_S):
        _, writer = await connect(port)
        await told.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert listener.tries == 1
        writer.close()
