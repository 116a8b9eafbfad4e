"""A worker, the engine or a client is killed: each request ends, and nothing is left behind. Real processes."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import pytest

from tests.e2e.served import Served, cmdline, serving
from tests.patience import PATIENCE_S
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

LONG = 4000  # tokens: no request ends by itself while a test looks
FLAGS = ["--prefill", "P2", "--decode", "T2", "--tokenizer", "bytes", "--num-device-blocks", "700"]
FLAGS += ["--num-host-blocks", "400", "--max-num-seqs", "6", "--policy", "paper", "--surge-min-tokens", "0"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vocab=260, max_position=4096)


def complete(served: Served, max_tokens: int = LONG, prompt: str = "Once") -> tuple[int, dict[str, object]]:
    body = {"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = Request(f"{served.url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, json.load(response)
    except HTTPError as error:
        return error.code, json.load(error)


def start_streaming(served: Served, prompt: str = "Once") -> socket.socket:
    """A client that has seen its first token."""
    address = urlparse(served.url)
    body = json.dumps({"prompt": prompt, "max_tokens": LONG, "ignore_eos": True, "stream": True})
    client = socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)
    client.sendall(
        f"POST /v1/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    received = b""
    while b"data: " not in received:
        received += client.recv(65536)
    return client


def start_many(served: Served, count: int) -> list[Future[tuple[int, dict[str, object]]]]:
    """Requests that run or wait: more than fit at once."""
    pool = ThreadPoolExecutor(count)
    futures = [pool.submit(complete, served, LONG, "x" * (i + 1)) for i in range(count)]
    served.until("requests do not run", lambda m: m["generation_tokens_total"] >= 10)
    return futures


def test_a_dead_worker_ends_every_request_and_the_server(checkpoint: Path, tmp_path: Path) -> None:
    with serving(checkpoint, tmp_path, *FLAGS) as served:
        stream = start_streaming(served)
        waiting = start_many(served, 10)
        family, workers = served.children(), served.workers()
        assert len(workers) == 2
        workers[1].kill()
        results = [future.result(timeout=PATIENCE_S) for future in waiting]
        rest = b""
        while data := stream.recv(65536):
            rest += data
        assert {status for status, _ in results} == {500}
        assert all("error" in body for _, body in results)
        assert b'data: {"error"' in rest and rest.rstrip().endswith(b"0")  # the chunked body is whole
        assert served.ended(family) == 1
        assert "killed by SIGKILL" in served.log.read_text()


def test_a_dead_engine_ends_every_request_and_the_server(checkpoint: Path, tmp_path: Path) -> None:
    with serving(checkpoint, tmp_path, *FLAGS) as served:
        waiting = start_many(served, 8)
        family = served.children()
        [engine] = [p for p in family if "spawn_main" in cmdline(p)]
        engine.kill()
        assert {future.result(timeout=PATIENCE_S)[0] for future in waiting} == {500}
        assert served.ended(family) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_every_request_and_leaves_nothing(
    number: signal.Signals, checkpoint: Path, tmp_path: Path
) -> None:
    with serving(checkpoint, tmp_path, *FLAGS) as served:
        waiting = start_many(served, 8)
        assert served.end(number) == 0
        assert {future.result(timeout=PATIENCE_S)[0] for future in waiting} == {503}


def test_a_signal_to_all_processes_at_once_lets_requests_end(checkpoint: Path, tmp_path: Path) -> None:
    """As `timeout`, systemd and a terminal that closes send it."""
    with serving(checkpoint, tmp_path, *FLAGS, f"--shutdown-timeout-s={PATIENCE_S}") as served:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(complete, served, 500)
            served.until("the request does not run", lambda m: m["generation_tokens_total"] >= 1)
            for child in served.children():
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    child.send_signal(number)
            assert served.end(signal.SIGTERM) == 0
            status, body = running.result()
            assert status == 200 and body["usage"]["completion_tokens"] == 500  # type: ignore[index]


def test_a_worker_killed_while_requests_have_time_to_end_ends_the_server_with_1(
    checkpoint: Path, tmp_path: Path
) -> None:
    with serving(checkpoint, tmp_path, *FLAGS, f"--shutdown-timeout-s={PATIENCE_S}") as served:
        waiting = start_many(served, 4)
        family, workers = served.children(), served.workers()
        served.process.send_signal(signal.SIGTERM)
        served.log_says("requests in flight have")
        workers[0].kill()
        assert {future.result(timeout=PATIENCE_S)[0] for future in waiting} == {500}
        assert served.ended(family) == 1


def test_a_second_signal_ends_a_server_with_stopped_processes(checkpoint: Path, tmp_path: Path) -> None:
    with serving(checkpoint, tmp_path, *FLAGS, f"--shutdown-timeout-s={PATIENCE_S}") as served:
        start_many(served, 1)
        family = served.children()
        served.suspend_all()
        served.process.send_signal(signal.SIGTERM)
        served.log_says("requests in flight have")
        while served.process.poll() is None:  # those that come close behind the first belong to it
            served.process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        assert served.ended(family) == 128 + signal.SIGTERM


def test_a_killed_server_takes_all_its_processes_along(checkpoint: Path, tmp_path: Path) -> None:
    """Also those that somebody has stopped."""
    with serving(checkpoint, tmp_path, *FLAGS) as served:
        start_many(served, 2)
        served.suspend_all()
        assert served.end(signal.SIGKILL) == -signal.SIGKILL


def test_clients_that_hang_up_free_their_blocks(checkpoint: Path, tmp_path: Path) -> None:
    """While running, while their KV is on the host, while they wait; the others are served on."""
    with serving(checkpoint, tmp_path, *FLAGS) as served:
        clients = [start_streaming(served, "y" * (30 * i + 1)) for i in range(4)]
        address = urlparse(served.url)

        async def hang_up_before_the_first_token() -> None:
            writers = []
            for i in range(20):
                _, writer = await asyncio.open_connection(address.hostname, address.port)
                body = json.dumps({"prompt": "z" * (20 * i + 1), "max_tokens": LONG - 20 * i, "ignore_eos": True})
                head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                writer.write(f"{head}{len(body)}\r\n\r\n{body}".encode())
                await writer.drain()
                if i % 2:
                    writer.close()
                writers.append(writer)
            for writer in writers:
                writer.transport.abort()

        asyncio.run(hang_up_before_the_first_token())
        for client in clients:
            client.close()
        served.is_drained()
        status, body = complete(served, max_tokens=5)
        assert status == 200 and body["usage"]["completion_tokens"] == 5  # type: ignore[index]
        served.is_drained()
