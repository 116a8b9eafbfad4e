"""What a crowd does to others' streams: their inter-token latency without it, and beside it.

    python scripts/crowd.py http://127.0.0.1:8000 [--seconds 20] [--streams 1000] [--slow 50] [--half-open 2000]

The crowd is of streams, of which half are cut at a random moment, readers that take a few bytes a second, heads that
never end, and clients that send one request after another, each for 128 continuations of 3,500 tokens, and hang up at
once. All prompts are token ids.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
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

    async def stream(self, gaps_s: list[float] | None = None, cut: bool = False, pause_s: float = 0.0) -> None:
        """Stream one answer after another. `gaps_s` gets the times between events; one that is `cut` hangs up at a
        random moment, and one with a `pause_s` takes a few bytes after each."""
        while True:
            prompt = [self._rng.randrange(200) for _ in range(PROMPT_TOKENS)]
            reader, writer = await self._open(self._request(prompt=prompt, max_tokens=MAX_TOKENS, stream=True))
            events = self._rng.randrange(MAX_TOKENS) if cut else sys.maxsize
            status = (await reader.readline())[9:12].decode()
            last_s = 0.0
            while events and (line := await (reader.read(16) if pause_s else reader.readline())):
                if pause_s:
                    await asyncio.sleep(pause_s)
                elif line.startswith(b"data: {"):
                    events -= 1
                    now_s = time.monotonic()
                    if last_s and gaps_s is not None:
                        gaps_s.append(now_s - last_s)
                    last_s = now_s
            writer.transport.abort()
            self.outcomes[status if events else "cut"] += 1
            if status != "200":
                await asyncio.sleep(0.1)

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


async def measure(crowd: Crowd, clients: Sequence[Coroutine[Any, Any, None]], others: int, seconds: float) -> str:
    """The latencies of so many others beside these clients, which come after them."""
    gaps_s: list[float] = []
    tasks = [asyncio.create_task(crowd.again(crowd.stream(gaps_s))) for _ in range(others)]
    await asyncio.sleep(seconds / 10)
    tasks += [asyncio.create_task(crowd.again(client)) for client in clients]
    await asyncio.sleep(seconds / 10)
    gaps_s.clear()
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    if not gaps_s:
        return "no tokens came"
    gaps_s.sort()
    p50, p99 = (1000 * gaps_s[int(share * (len(gaps_s) - 1))] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, most {1000 * gaps_s[-1]:.1f} ms of {len(gaps_s)} tokens"


async def run(args: argparse.Namespace) -> None:
    crowd = Crowd(args.url)
    print("alone: ", await measure(crowd, [], args.others, args.seconds), flush=True)
    crowd.outcomes.clear()
    clients = [crowd.stream(cut=index % 2 == 0) for index in range(args.streams)]
    clients += [crowd.stream(pause_s=1.0) for _ in range(args.slow)]
    clients += [crowd.half_open() for _ in range(args.half_open)] + [crowd.leave() for _ in range(args.leavers)]
    print("beside:", await measure(crowd, clients, args.others, args.seconds))
    print("       ", ", ".join(f"{name}: {count}" for name, count in sorted(crowd.outcomes.items())))


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
