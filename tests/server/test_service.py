"""`seesaw serve` as a process, from start to each of its ends."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlparse

import httpx
import psutil
import pytest

from seesaw.server.config import ServerConfig
from seesaw.server.service import banner
from seesaw.server.settings import API_KEY_VARIABLE
from tests.patience import PATIENCE_S
from tests.server.fake_engine import INFO, short_dir
from tests.server.link.test_grammar_check import ENDLESS
from tests.server.served import ROOT, complete, post, served, wait_for_first_tokens


def test_the_banner_has_all_names_and_no_key_but_a_variable_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        monkeypatch.delenv(API_KEY_VARIABLE, raising=False)
        assert "Authorization" not in banner(ServerConfig(), listener, INFO)
        shown = banner(ServerConfig(served_model_name=("a", "b", "c"), api_key=("secret",)), listener, INFO)
        assert shown.startswith(f"Seesaw serves a (also as b, c) at {url}\n")
        assert "Bearer YOUR_KEY" in shown and "secret" not in shown
        monkeypatch.setenv(API_KEY_VARIABLE, "secret")
        shown = banner(ServerConfig(api_key=("secret",)), listener, INFO)
        assert f"Bearer ${API_KEY_VARIABLE}" in shown and "secret" not in shown
        assert "Bearer YOUR_KEY" in banner(ServerConfig(api_key=("another",)), listener, INFO)
        assert "  page       http://127.0.0.1:" in shown
        assert "page" not in banner(ServerConfig(page=False), listener, INFO)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_with_0_and_waiting_requests_with_an_error(number: signal.Signals, tmp_path: Path) -> None:
    with served("echo", tmp_path) as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        assert re.search(r"seesaw: +\d+\.\d s: loading nothing", "".join(server.lines))
        assert "P2 (prefill), T2 (decode)" in server.wait_for("layouts")
        assert "100 blocks = 1600 tokens" in server.wait_for("device KV")
        server.wait_for("curl")
        assert complete(url, "hello")[1]["choices"][0]["text"] == "hello"  # type: ignore[index]
        waiting = threads.submit(complete, url, "hang")
        wait_for_first_tokens(url, 2)
        server.process.send_signal(number)
        status, body = waiting.result()
        assert (status, body["error"]["type"]) == (503, "ServiceUnavailableError")  # type: ignore[index]
        code, rest = server.end()
        assert code == 0 and "has 10 s to end" in rest


def test_grammars_that_take_long_hold_up_neither_large_bodies_nor_the_end(tmp_path: Path) -> None:
    with served("echo", tmp_path) as server, ThreadPoolExecutor(12) as threads:
        url = server.wait_ready()
        forms = [json.loads(ENDLESS.text) | {"title": f"{i}"} for i in range(10)]  # each takes a check's 10 seconds
        waiting = [threads.submit(post, f"{url}/completions", {"prompt": "a", "guided_json": form}) for form in forms]
        while len(psutil.Process(server.process.pid).children()) < len(server.children) + 1:
            time.sleep(0.01)
        began = time.perf_counter()
        assert post(f"{url}/completions", {"prompt": "hello", "user": "x" * 400_000})[0] == 200
        assert not any(each.done() for each in waiting)
        server.process.send_signal(signal.SIGINT)
        assert [each.result()[0] for each in waiting] == [503] * 10
        code, rest = server.end()
        assert code == 0 and "Traceback" not in rest
        assert time.perf_counter() - began < 9


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
        while server.process.poll() is None:  # those that come close behind the first belong to it
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.01)
        with pytest.raises((OSError, urllib.error.URLError)):
            waiting.result()
        assert server.end()[0] == 128 + signal.SIGTERM


def test_an_engine_that_dies_while_requests_have_time_to_end_ends_the_server_with_1(tmp_path: Path) -> None:
    with served("echo", tmp_path, "--shutdown-timeout-s=600") as server, ThreadPoolExecutor() as threads:
        url = server.wait_ready()
        waiting = threads.submit(complete, url, "hang")
        wait_for_first_tokens(url, 1)
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGHUP)  # as systemd may: no second one
        server.wait_for("requests in flight have 600 s")
        (engine,) = [child for child in server.children if "spawn_main" in " ".join(child.cmdline())]
        engine.kill()
        assert waiting.result()[0] == 500
        code, rest = server.end()
        assert code == 1 and "the engine process ended without a word" in rest


def test_an_engine_that_is_not_heard_of_while_it_starts_is_killed(tmp_path: Path) -> None:
    with served("slow", tmp_path, "--start-timeout-s=1", "--engine-timeout-s=1") as server:
        code, rest = server.end()
        assert code == 1 and "error: the engine that starts was not heard of for 1 s and was killed" in rest
        assert "Traceback" not in rest


@pytest.mark.parametrize("reader", ["has no room", "reads nothing", "is gone", "never was"])
def test_printing_decides_nothing(reader: str, tmp_path: Path) -> None:
    folder = short_dir()
    flags = ["--tokenizer=bytes", "--load-format=dummy", f"--uds={folder / 's'}", "--access-log"]
    command = [sys.executable, "-m", "tests.server.serve_fake", "serve", "echo", *flags, "--shutdown-timeout-s=600"]
    if reader == "never was":
        command = ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "bash", *command]
    unread, stdout = os.pipe()
    fcntl.fcntl(stdout, fcntl.F_SETPIPE_SZ, 4096)
    if reader == "has no room":
        stdout = os.open("/dev/full", os.O_WRONLY)
    if reader != "reads nothing":
        os.close(unread)
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stdout) as server:
        try:
            with httpx.Client(transport=httpx.HTTPTransport(uds=f"{folder / 's'}"), timeout=PATIENCE_S) as client:
                while not _is_up(client):
                    assert server.poll() is None
                for _ in range(100):  # more than the pipe holds
                    answer = client.post("http://x/v1/completions", json={"prompt": "hello"})
                    assert answer.json()["choices"][0]["text"] == "hello"
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_S) == 0
        finally:
            server.kill()
    assert list(tmp_path.iterdir()) == []
    shutil.rmtree(folder)


def _is_up(client: httpx.Client) -> bool:
    try:
        return client.get("http://x/health").status_code == 200
    except httpx.TransportError:
        time.sleep(0.01)
        return False


@pytest.mark.parametrize(
    ("model", "code", "line"),
    [("refuse", 2, "seesaw: error: the model is not to my taste"), ("crash", 1, "seesaw: error: the engine process")],
)
def test_an_engine_that_cannot_start(tmp_path: Path, model: str, code: int, line: str) -> None:
    with served(model, tmp_path) as server:
        ended, printed = server.end()
        assert ended == code
        assert line in printed and "Traceback" not in printed


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--chat-template=/no/such/file", "cannot read the chat template /no/such/file"),
        ("--chat-template={% if %}", "the chat template has a syntax error in line 1"),
        ("--generation-config=/no/such/file", "there is no /no/such/file"),
        ("--ssl-certfile=/no/such/file", "TLS cannot use /no/such/file"),
    ],
)
def test_a_server_that_cannot_start(tmp_path: Path, flag: str, line: str) -> None:
    with served("echo", tmp_path, flag) as server:
        ended, printed = server.end()
        assert ended == 2
        assert f"seesaw: error: {line}" in printed and "Traceback" not in printed


def test_chats_by_the_operators_template_and_defaults(tmp_path: Path) -> None:
    (temp := tmp_path / "run").mkdir()
    (defaults := tmp_path / "defaults.json").write_text('{"top_p": 0.5}')
    flags = ["--chat-template=<{{ messages[0].content }}>", f"--generation-config={defaults}"]
    with served("echo", temp, *flags) as server:
        url = server.wait_ready()
        assert "'top_p': 0.5" in "".join(server.lines)
        status, body = post(f"{url}/chat/completions", {"messages": [{"role": "user", "content": "hello"}]})
        assert (status, body["choices"][0]["message"]["content"]) == (200, "<hello>")  # type: ignore[index]
        server.process.send_signal(signal.SIGTERM)
        assert server.end()[0] == 0


def test_a_signal_while_the_engine_starts(tmp_path: Path) -> None:
    with served("slow", tmp_path) as server:
        server.wait_for("loading nothing")
        server.process.send_signal(signal.SIGTERM)
        code, rest = server.end()
        assert code == 0 and "has 0 s to end" in rest  # it would not hear that it should stop
