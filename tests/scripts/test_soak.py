"""The soak finds what is wrong: against a small server that streams as ours does, and errs on demand."""

import argparse
import asyncio
import json
import re

import pytest
import soak
from aiohttp import web
from aiohttp.test_utils import TestServer
from soak_client import Metrics
from soak_server import Server

from tests.patience import PATIENCE_S

CONTEXT = 1000
IDLE = "echo; while :; do read -t 0.05; done"  # looks for signals again and again, so that none comes too early


class Words:
    def encode(self, text):
        return [0] * len(text.split())


class FakeServer:
    """Streams as many tokens as asked for. `fault` is what it does wrong."""

    def __init__(self, fault=None):
        self.fault = fault
        self.prompt_tokens = 100  # of clients before us
        self.generation_tokens = 100
        self.running = 0
        self.most_running = 0
        self.leaked_blocks = 3 if fault == "leak" else 0
        self.finished = 0

    async def completions(self, request):
        body = await request.json()
        prompt_tokens = len(body["prompt"].split())
        if self.fault == "busy":
            return web.json_response({"error": {"message": "try later"}}, status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        self.prompt_tokens += prompt_tokens
        count = body["max_tokens"] - (self.fault == "short")
        try:
            for i in range(1, count + 1):
                if self.fault == "error" and i == 3:
                    await self.send(response, {"error": {"message": "a worker ended"}})
                    break
                self.generation_tokens += 1
                usage = {"prompt_tokens": prompt_tokens, "completion_tokens": i}
                choice = {"text": "x", "finish_reason": "length" if i == count else None}
                await self.send(response, {"choices": [choice], "usage": usage})
                await asyncio.sleep(0)
            await self.send(response, {"choices": [], "usage": usage})
            if self.fault != "no done":
                await response.write(b"data: [DONE]\n\n")
            self.finished += 1
        finally:
            self.running -= 1
        return response

    async def send(self, response, event):
        await response.write(f"data: {json.dumps(event)}\n\n".encode())

    async def models(self, request):
        return web.json_response({"data": [{"id": "m", "max_model_len": CONTEXT}]})

    async def health(self, request):
        return web.json_response({})

    async def metrics(self, request):
        generated = self.generation_tokens + (self.fault == "miscount" and self.finished > 0)
        text = (
            f"seesaw:prompt_tokens_total {self.prompt_tokens}\n"
            f"seesaw:generation_tokens_total {generated}\n"
            f"seesaw:num_requests_running {self.running}\n"
            "seesaw:num_requests_waiting 0\n"
            "seesaw:num_requests_hosted 0\n"
            f"seesaw:device_kv_blocks_used {self.leaked_blocks}\n"
            f'seesaw:transitions_total{{change="P2->T2"}} {self.finished}\n'
            f'seesaw:swap_bytes_total{{direction="out"}} {self.finished << 20}\n'
        )
        return web.Response(text=text + ("" if self.fault == "no metric" else "seesaw:host_kv_blocks_used 0\n"))

    def app(self):
        app = web.Application()
        app.router.add_post("/v1/completions", self.completions)
        for path, handler in (("/v1/models", self.models), ("/health", self.health), ("/metrics", self.metrics)):
            app.router.add_get(path, handler)
        return app


@pytest.fixture
def dataset(tmp_path):
    items = [{"conversations": [{"value": "p " * n}, {"value": "o " * (n + 1)}]} for n in range(4, 34)]  # 30 of them
    path = tmp_path / "sharegpt.json"
    path.write_text(json.dumps(items))
    return path


def arguments(dataset, *more) -> argparse.Namespace:
    return soak.parse_args(["--base-url", "x", "--dataset", str(dataset), "--num-requests", "30", *more])


def run(server, args, monkeypatch):
    monkeypatch.setattr(soak, "IDLE_TIMEOUT_S", 0.0 if server.leaked_blocks else PATIENCE_S)

    async def main():
        async with TestServer(server.app()) as running:
            return await soak.soak(str(running.make_url("")), Words(), args)

    return asyncio.run(main())


def test_all_well(dataset, monkeypatch, capsys):
    server = FakeServer()
    assert run(server, arguments(dataset, "--concurrency", "4"), monkeypatch) == []
    assert server.finished == 30
    assert 1 < server.most_running <= 4
    printed = capsys.readouterr().out
    prompt = sum(range(4, 34))
    assert f"{prompt} prompt, {prompt + 30} generated" in printed
    assert "P2->T2 30" in printed
    assert "out 30.0 MiB" in printed


def test_limits(dataset, monkeypatch):
    server = FakeServer()
    args = arguments(dataset, "--num-requests", "5", "--max-prompt-tokens", "8", "--max-output-tokens", "2")
    assert run(server, args, monkeypatch) == []
    assert server.prompt_tokens - 100 == sum(range(4, 9))
    assert server.generation_tokens - 100 == 5 * 2


def test_clients_that_hang_up(dataset, monkeypatch):
    server = FakeServer()
    assert run(server, arguments(dataset, "--cut", "10"), monkeypatch) == []
    assert server.finished == 20


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("busy", "request 0 .completion. failed: HTTP 503: .*try later"),
        ("short", r"request 0 .completion. got \d+ of \d+ tokens"),
        ("error", "request 0 .completion. failed: .*a worker ended"),
        ("no done", "request 0 .completion. failed: .*without .DONE."),
        ("miscount", "the server counted .* generated tokens, the clients"),
        ("leak", "seesaw:device_kv_blocks_used is 3 when all is done, not 0"),
        ("no metric", "/metrics has no seesaw:host_kv_blocks_used"),
    ],
)
def test_what_is_wrong_is_said(dataset, monkeypatch, fault, sentence):
    found = run(FakeServer(fault), arguments(dataset), monkeypatch)
    assert any(re.match(sentence, line) for line in found), found


def test_metrics_by_label():
    before = Metrics.parse('a_total{x="1"} 5\na_total{x="2"} 1\n')
    after = Metrics.parse('a_total{x="1"} 7\na_total{x="2"} 1\na_total{x="3"} 4\n')
    assert after.by_label(before, "a_total") == {"1": 2, "3": 4}
    assert after.since(before, "a_total") == 6


def test_arguments_that_contradict(capsys):
    for argv in (["--cut", "9", "--num-requests", "3"], ["--base-url", "x", "--", "--port", "1"]):
        with pytest.raises(SystemExit):
            soak.parse_args(argv)
    assert soak.parse_args(["--cut", "1", "--", "--tail", "T2"]).server_args == ["--tail", "T2"]


@pytest.mark.parametrize(
    ("script", "sentences"),
    [
        (f"trap 'exit 0' TERM; {IDLE}", []),
        (f"trap 'exit 3' TERM; {IDLE}", ["the server ended with exit code 3 after SIGTERM, not 0"]),
        (f"trap 'exit 0' TERM; sleep 600 >/dev/null </dev/null & {IDLE}", ["the server left its child process"]),
        ("exit 1", ["the server ended by itself with exit code 1"]),
    ],
)
def test_how_an_own_server_ends(script, sentences):
    async def main():
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("bash", "-c", script, stdin=pipe, stdout=pipe)
        await process.stdout.readline()  # its trap is set, or it has ended
        if script.startswith("exit"):
            await process.wait()
        return await Server(process, "http://unused").stop(children_timeout_s=1.0)

    found = asyncio.run(main())
    assert len(found) == len(sentences)
    assert all(line.startswith(sentence) for line, sentence in zip(found, sentences, strict=True))
