"""`seesaw serve --restart-engine` as a process whose fake engines die: what clients, probes and the operator see."""

from __future__ import annotations

import json
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.patience import PATIENCE_S, PAUSE_S
from tests.server.served import Served, complete, served, wait_for_first_tokens

Answer = Future[tuple[int, dict[str, Any]]]


def get(url: str, path: str) -> tuple[int, str, str]:
    """Status, Retry-After and body."""
    try:
        with urllib.request.urlopen(url.removesuffix("/v1") + path, timeout=PATIENCE_S) as response:
            return response.status, "", response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers.get("Retry-After", ""), error.read().decode()


def ask(url: str, prompt: str, stream: bool) -> tuple[int, str]:
    """Status and body."""
    response = httpx.post(f"{url}/completions", json={"prompt": prompt, "stream": stream}, timeout=PATIENCE_S)
    return response.status_code, response.text


def wait_for_load(url: str, num_requests: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while json.loads(get(url, "/load")[2]) != {"server_load": num_requests}:
        assert time.monotonic() < deadline
        time.sleep(PAUSE_S)


def kill_engine(server: Served) -> None:
    [engine] = [child for child in server.children if "spawn_main" in " ".join(child.cmdline())]
    engine.kill()


def end(server: Served, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    server.children += psutil.Process(server.process.pid).children(recursive=True)
    server.process.send_signal(number)
    return server.end()


def test_what_streamed_nothing_is_answered_by_the_next_engine(tmp_path: Path) -> None:
    """What kills each engine that has it, kills two."""
    with served("mute,echo", tmp_path, "--restart-engine=2") as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        waiting: Answer = threads.submit(complete, url, "hello")
        wait_for_load(url, 1)
        deadly: Answer = threads.submit(complete, url, "die")
        status, body = waiting.result()
        assert (status, body["choices"][0]["text"]) == (200, "hello")
        status, body = deadly.result()
        assert status == 500 and "being restarted" in body["error"]["message"]
        server.wait_for("starting the engine again (2 of 2 times)")
        server.wait_for("ready again")
        status, body = complete(url, "again")
        assert (status, body["choices"][0]["text"]) == (200, "again")  # type: ignore[index]
        assert "seesaw:engine_restarts_total 2.0" in get(url, "/metrics")[2]
        assert get(url, "/ready")[0] == 200
        assert end(server)[0] == 0


def test_while_it_starts_again_clients_and_probes_are_told_to_wait(tmp_path: Path) -> None:
    with served("echo,slow", tmp_path, "--restart-engine=1") as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        streamed, whole = (threads.submit(ask, url, "hang", stream) for stream in (True, False))
        wait_for_first_tokens(url, 2)
        kill_engine(server)
        assert '"code": 500' in streamed.result()[1]
        server.wait_for("loading nothing")
        for path in ("/health", "/ready", "/ping"):
            status, retry_after, body = get(url, path)
            assert status == 503 and int(retry_after) >= 1
            error = json.loads(body)["error"]
            assert error["type"] == "ServiceUnavailableError" and "being restarted" in error["message"]
        assert complete(url, "hello")[0] == 503
        assert get(url, "/v1/models")[0] == 200
        metrics = get(url, "/metrics")[2]
        assert "seesaw:engine_restarts_total 1.0" in metrics and "seesaw:num_requests_running 0.0" in metrics
        assert not whole.done()  # its client was told nothing yet
        code, rest = end(server)
        assert code == 0 and "has 0 s to end" in rest and "Traceback" not in rest
        assert whole.result()[0] == 503


def test_a_signal_ends_what_waits_for_the_next_engine(tmp_path: Path) -> None:
    """Also where requests have time to end: none would end before the engine is there."""
    flags = "--restart-engine=1", "--shutdown-timeout-s=600"
    with served("mute,slow", tmp_path, *flags) as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        waiting: Answer = threads.submit(complete, url, "hello")
        wait_for_load(url, 1)
        kill_engine(server)
        server.wait_for("loading nothing")
        assert not waiting.done()
        code, _ = end(server)
        assert code == 0 and waiting.result()[0] == 503


def test_when_no_start_is_left_it_ends_as_without(tmp_path: Path) -> None:
    with served("mute,crash", tmp_path, "--restart-engine=1") as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        waiting: Answer = threads.submit(complete, url, "hello")
        wait_for_load(url, 1)
        kill_engine(server)
        status, body = waiting.result()
        assert status == 500 and "engine has stopped" in body["error"]["message"]
        code, rest = server.end()
        assert code == 1 and "seesaw: error: the engine process ended without a word" in rest
