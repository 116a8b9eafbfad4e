"""What a crowd does to others' streams: their inter-token latency without it, and beside it.

    python scripts/crowd.py http://127.0.0.1:8000 [--seconds 20] [--streams 1000] [--slow 50] [--half-open 2000]

The crowd is of streams, of which half are cut at a random moment, readers that take a few bytes a second, heads that
never end, and clients that send one request after another, each for 128 continuations of 3,500 tokens, and hang up at
once. All prompts are token ids. The crowd is a process of its own, so that what it reads does not delay what is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from multiprocessing.synchronize import Event
from typing import Any
from urllib.parse import urlsplit

LEAVE_S = 0.05
PROMPT_TOKENS, MAX_TOKENS, MANY_TOKENS = 50, 300, 3500


class Crowd:
    """Clients of one server, which are asyncio tasks; `outcomes` counts how their requests ended."""

    def __init__(self, url: str, seed: int = 0) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._rng = random.Random(seed)
        self.outcomes: Counter[str] = Counter()

    def _request(self, **body: Any) -> bytes:
        raw = json.dumps({"ignore_eos": True, **body}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        return f"{head}Connection: close\r\nContent-Length: {len(raw)}\r\n\r\n".encode() + raw

    def _stream(self) -> bytes:
        prompt = [self._rng.randrange(200) for _ in range(PROMPT_TOKENS)]
        return self._request(prompt=prompt, max_tokens=MAX_TOKENS, stream=True)

    async def _open(self, sent: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        writer.write(sent)
        return reader, writer

    async def again(self, client: Coroutine[Any, Any, None]) -> None:
        """One that lasts until it is cancelled, whatever happens to its connection."""
        try:
            await client
        except (OSError, EOFError) as error:
            self.outcomes[type(error).__name__] += 1

    async def timed(self, gaps_s: list[float]) -> None:
        """Stream one answer after another; `gaps_s` gets the times between events."""
        while True:
            reader, writer = await self._open(self._stream())
            last_s = 0.0
            while line := await reader.readline():
                if line.startswith(b"data: {"):
                    now_s = time.monotonic()
                    if last_s:
                        gaps_s.append(now_s - last_s)
                    last_s = now_s
            writer.transport.abort()

    async def stream(self, cut: bool) -> None:
        """Stream one answer after another; one that is `cut` hangs up at a random moment."""
        while True:
            reader, writer = await self._open(self._stream())
            status = (await reader.readline())[9:12].decode()
            events = self._rng.randrange(MAX_TOKENS) if cut else sys.maxsize
            while events > 0 and (data := await reader.read(65_536)):
                events -= data.count(b"data: {")
            writer.transport.abort()
            self.outcomes[status if events > 0 else "cut"] += 1
            if status != "200":
                await asyncio.sleep(0.1)

    async def read_slowly(self) -> None:
        while True:
            reader, writer = await self._open(self._stream())
            while await reader.read(16):
                await asyncio.sleep(1.0)
            writer.transport.abort()
            self.outcomes["read slowly"] += 1

    async def half_open(self) -> None:
        while True:
            reader, writer = await self._open(b"POST /v1/completions HTTP/1.1\r\nHost:")
            await reader.read()
            writer.close()

    async def leave(self) -> None:
        request = self._request(prompt=[7] * MANY_TOKENS, n=128, max_tokens=400)
        while True:
            _, writer = await self._open(request)
            await asyncio.sleep(LEAVE_S)
            writer.transport.abort()
            self.outcomes["left"] += 1


async def come(args: argparse.Namespace, stop: Event) -> None:
    """The crowd, until it is told to go."""
    crowd = Crowd(args.url, seed=1)
    clients = [crowd.stream(cut=index % 2 == 0) for index in range(args.streams)]
    clients += [crowd.read_slowly() for _ in range(args.slow)]
    clients += [crowd.half_open() for _ in range(args.half_open)] + [crowd.leave() for _ in range(args.leavers)]
    tasks = [asyncio.create_task(crowd.again(client)) for client in clients]
    await asyncio.to_thread(stop.wait)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print("       ", ", ".join(f"{name}: {count}" for name, count in sorted(crowd.outcomes.items())), flush=True)


def run_crowd(args: argparse.Namespace, stop: Event) -> None:
    asyncio.run(come(args, stop))


async def measure(gaps_s: list[float], seconds: float) -> str:
    """The latencies of those who stream into `gaps_s`, once they, or a crowd, have had a tenth of the time to come."""
    await asyncio.sleep(seconds / 10)
    gaps_s.clear()
    await asyncio.sleep(seconds)
    if not gaps_s:
        return "no tokens came"
    ordered = sorted(gaps_s)
    p50, p99 = (1000 * ordered[int(share * (len(ordered) - 1))] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {1000 * ordered[-1]:.1f} ms of {len(ordered)} tokens"


async def run(args: argparse.Namespace) -> None:
    processes = multiprocessing.get_context("spawn")
    others, gaps_s = Crowd(args.url), list[float]()
    tasks = [asyncio.create_task(others.again(others.timed(gaps_s))) for _ in range(args.others)]
    print("alone: ", await measure(gaps_s, args.seconds), flush=True)
    stop = processes.Event()
    crowd = processes.Process(target=run_crowd, args=(args, stop), daemon=True)
    crowd.start()
    print("beside:", await measure(gaps_s, args.seconds), flush=True)
    stop.set()
    crowd.join()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for name, count in others.outcomes.items():
        print(f"        {count} of those measured: {name}")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("url", help="of a server")
    parser.add_argument("--seconds", type=float, default=20.0, help="that each part is measured (default: 20)")
    parser.add_argument("--others", type=int, default=8, help="streams whose latency counts (default: 8)")
    parser.add_argument("--streams", type=int, default=1000, help="of which half are cut (default: 1000)")
    parser.add_argument("--slow", type=int, default=50, help="readers of 16 bytes a second (default: 50)")
    parser.add_argument("--half-open", type=int, default=2000, help="connections whose head never ends (default: 2000)")
    parser.add_argument(
        "--leavers", type=int, default=8, help="clients that leave at once, again and again (default: 8)"
    )
    asyncio.run(run(parser.parse_args(argv)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
