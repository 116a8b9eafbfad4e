"""A server of completions that sends made-up tokens on a schedule and logs when it really sent each.

The truth that `check_client_accuracy.py` holds the load test against; runs as a process of its own. Plain asyncio,
since the server must not be what limits. On SIGTERM it writes a JSON list with an object for each request:
`received_s`, and `sent_s` of each event, on the system's monotonic clock.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

TICK_S = 0.001
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"  # one chunk an event
MODELS = b'{"object": "list", "data": [{"id": "scheduled", "object": "model"}]}'
EVENT = b'data: {"id": "x", "object": "text_completion", "choices": [{"index": 0, "text": "t"}]}\n\n'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


EVENT_CHUNK = chunk(EVENT)


@dataclass
class Answer:
    """One request's stream, and what is logged of it."""

    transport: asyncio.Transport
    num_input: int
    num_left: int
    received_s: float
    sent_s: list[float] = field(default_factory=list)

    def send(self) -> bool:
        """Send the next event; whether more follow."""
        self.num_left -= 1
        data = EVENT_CHUNK if self.sent_s else HEAD + EVENT_CHUNK
        self.sent_s.append(time.monotonic())
        self.transport.write(data if self.num_left else data + self._end())
        return self.num_left > 0

    def _end(self) -> bytes:
        usage = {"prompt_tokens": self.num_input, "completion_tokens": len(self.sent_s)}
        last = json.dumps({"choices": [], "usage": usage}).encode()
        return chunk(b"data: %b\n\n" % last) + chunk(b"data: [DONE]\n\n") + chunk(b"")


class Schedule:
    """Sends every answer's events when they are due: `first_s` after the request and then every `interval_s`,
    each varied by up to half, so that streams do not tick together."""

    def __init__(self, first_s: float, interval_s: float, seed: int = 0) -> None:
        self._first_s = first_s
        self._interval_s = interval_s
        self._random = random.Random(seed)
        self._due: list[tuple[float, int, Answer]] = []
        self._wake = asyncio.Event()
        self.answers: list[Answer] = []

    def add(self, answer: Answer) -> None:
        self.answers.append(answer)
        self._push(answer, answer.received_s, self._first_s)
        self._wake.set()

    async def run(self) -> None:
        while True:
            while not self._due:
                self._wake.clear()
                await self._wake.wait()
            # Not longer, for an answer that is due earlier may come meanwhile; and yields also when it is late.
            await asyncio.sleep(min(TICK_S, self._due[0][0] - time.monotonic()))
            now_s = time.monotonic()
            while self._due and self._due[0][0] <= now_s:
                due_s, _, answer = heapq.heappop(self._due)
                if answer.send():
                    self._push(answer, due_s, self._interval_s)

    def _push(self, answer: Answer, after_s: float, delay_s: float) -> None:
        due_s = after_s + delay_s * self._random.uniform(0.5, 1.5)
        heapq.heappush(self._due, (due_s, id(answer), answer))


class Connection(asyncio.Protocol):
    """As much of HTTP/1.1 as the load test speaks."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, blank, body = self._received.partition(b"\r\n\r\n")
        if not blank:
            return
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) < int(headers.get(b"content-length", 0)):
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(MODELS), MODELS)
            )
            return
        asked = json.loads(body)
        self._schedule.add(Answer(self._transport, len(asked["prompt"]), asked["max_tokens"], time.monotonic()))


async def serve(port: int, log: Path, first_s: float, interval_s: float) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    schedule = Schedule(first_s, interval_s)
    await loop.create_server(lambda: Connection(schedule), "127.0.0.1", port, backlog=2048)
    print("ready", flush=True)
    sending = asyncio.create_task(schedule.run())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((sending, stopping), return_when=asyncio.FIRST_COMPLETED)
    if sending.done():
        sending.result()
    log.write_text(json.dumps([{"received_s": a.received_s, "sent_s": a.sent_s} for a in schedule.answers]))


def main() -> None:
    parser = argparse.ArgumentParser(description="Send made-up tokens on a schedule and log when each was sent.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--first-s", type=float, required=True, help="mean time to the first token")
    parser.add_argument("--interval-s", type=float, required=True, help="mean time between a stream's tokens")
    args = parser.parse_args()
    asyncio.run(serve(args.port, args.log, args.first_s, args.interval_s))


if __name__ == "__main__":
    main()
