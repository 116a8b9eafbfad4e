"""`seesaw serve` as a process, from start to each of its ends. The engine is a fake process, all else is real."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlparse

import psutil
import pytest
from soak_server import still_running

from tests.patience import PATIENCE_S

ROOT = Path(__file__).parents[2]


class Served:
    """A running `seesaw serve`, and what is left of it."""

    def __init__(self, process: subprocess.Popen[str], temp: Path) -> None:
        self.process = process
        self._temp = temp
        self.lines: list[str] = []

    @property
    def out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    def wait_for(self, text: str) -> str:
        for line in self.out:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError("".join(self.lines))

    def wait_ready(self) -> str:
        url = self.wait_for("Seesaw serves").split()[-1]
        self.children = psutil.Process(self.process.pid).children(recursive=True)
        return url

    def end(self) -> tuple[int, str]:
        """Wait for the end; nothing may be left behind. Returns exit code and what was printed since."""
        rest = self.out.read()
        code = self.process.wait(PATIENCE_S)
        assert still_running(getattr(self, "children", []), PATIENCE_S) == {}
        assert list(self._temp.iterdir()) == []
        return code, rest


@contextmanager
def served(model: str, tmp_path: Path, *flags: str) -> Iterator[Served]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.serve_fake", "serve", model, "--tokenizer=bytes", "--port=0", *flags],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Served(process, tmp_path)
    finally:
        process.kill()
        process.wait()


def complete(url: str, prompt: str) -> tuple[int, dict[str, object]]:
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{url}/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for_first_tokens(url: str, count: int) -> None:
    """Until so many sequences have had their first token."""
    line = f"seesaw:time_to_first_token_seconds_count {count}.0"
    while True:
        with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=PATIENCE_S) as response:
            if line in response.read().decode():
                return


def test_a_signal_ends_it_with_0_and_waiting_requests_with_an_error(tmp_path: Path) -> None:
    with served("echo", tmp_path) as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        assert re.search(r"seesaw: +\d+\.\d s: loading nothing", "".join(server.lines))
        assert "P2 (prefill), T2 (decode)" in server.wait_for("layouts")
        assert "100 blocks = 1600 tokens" in server.wait_for("device KV")
        server.wait_for("curl")
        assert complete(url, "hello")[1]["choices"][0]["text"] == "hello"  # type: ignore[index]
        waiting = threads.submit(complete, url, "hang")
        wait_for_first_tokens(url, 2)
        server.process.send_signal(signal.SIGINT)
        status, body = waiting.result()
        assert (status, body["error"]["type"]) == (503, "ServiceUnavailableError")  # type: ignore[index]
        code, rest = server.end()
        assert code == 0 and "has 10 s to end" in rest


def test_the_engines_death_ends_every_request_and_the_server_with_1(tmp_path: Path) -> None:
    with served("echo", tmp_path) as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        waiting = threads.submit(complete, url, "hang")
        wait_for_first_tokens(url, 1)
        status, body = complete(url, "die")
        assert (status, waiting.result()[0]) == (500, 500)
        assert "engine has stopped" in body["error"]["message"]  # type: ignore[index]
        code, rest = server.end()
        assert code == 1 and "the engine process ended without a word" in rest


def test_a_signal_after_the_engines_death_does_not_make_it_a_clean_end(tmp_path: Path) -> None:
    with served("echo", tmp_path) as server:
        url = server.wait_ready()
        address = urlparse(url)
        with socket.create_connection((address.hostname, address.port)) as unfinished:
            # Half a request: the server does not end before this client has gone.
            unfinished.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            unfinished.sendall(b"Content-Length: 100\r\n\r\n{")
            complete(url, "die")
            server.wait_for("error: the engine process ended")
            server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 1


def test_an_engine_that_hangs_is_killed_and_ends_the_server_with_1(tmp_path: Path) -> None:
    with served("echo", tmp_path, "--engine-timeout-s=0.5") as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        (engine,) = [child for child in server.children if "spawn_main" in " ".join(child.cmdline())]
        engine.suspend()
        assert threads.submit(complete, url, "hello").result()[0] == 500
        code, rest = server.end()
        assert code == 1 and "the engine has hung for 0.5 s and was killed" in rest


def test_draining_lets_requests_end_and_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    with served("echo", tmp_path, "--shutdown-timeout-s=600") as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        waiting = threads.submit(complete, url, "hang")
        wait_for_first_tokens(url, 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("requests in flight have 600 s")
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises((OSError, urllib.error.URLError)):
            waiting.result()
        assert server.end()[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("model", "code", "line"),
    [("refuse", 2, "seesaw: error: the model is not to my taste"), ("crash", 1, "seesaw: error: the engine process")],
)
def test_an_engine_that_cannot_start(tmp_path: Path, model: str, code: int, line: str) -> None:
    with served(model, tmp_path) as server:
        ended, printed = server.end()
        assert ended == code
        assert line in printed and "Traceback" not in printed


def test_a_signal_while_the_engine_starts(tmp_path: Path) -> None:
    with served("slow", tmp_path) as server:
        server.wait_for("loading nothing")
        server.process.send_signal(signal.SIGTERM)
        code, rest = server.end()
        assert code == 0 and "has 0 s to end" in rest  # it would not hear that it should stop
