"""The crowd's clients, against a server that streams."""

from __future__ import annotations

import asyncio
import re

import crowd
import pytest

ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b'data: {"x": 1}\n\n' * crowd.MAX_TOKENS

pytestmark = pytest.mark.anyio


async def test_others_are_measured_beside_all_kinds_of_clients() -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            heads.append(head)
            await reader.readexactly(int(re.findall(rb"Content-Length: (\d+)", head)[0]))
            writer.write(ANSWER)
            await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        crowded, gaps_s, told = crowd.Crowd(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"), list[float](), ""
        clients = [crowded.timed(gaps_s), crowded.stream(cut=True), crowded.stream(cut=False), crowded.half_open()]
        tasks = [asyncio.create_task(crowded.again(client)) for client in (*clients, crowded.leave())]
        tasks.append(asyncio.create_task(crowded.read_slowly()))
        while not {"200", "cut", "left"} <= crowded.outcomes.keys() or told in ("", "no tokens came"):
            told = await crowd.measure(gaps_s, seconds=0.1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert heads and re.fullmatch(r"p50 [\d.]+ ms, p99 [\d.]+ ms, most [\d.]+ ms of \d+ tokens", told)
