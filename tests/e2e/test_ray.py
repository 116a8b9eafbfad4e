"""Two nodes of a Ray cluster on this host: `seesaw batch run --ray` while hosts and engines die, and Ray Serve.

Skipped where Ray is not installed, as in CI: `scripts/check_ray.sh` runs them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from soak_server import still_running

from tests.e2e.served import cmdline
from tests.patience import PATIENCE_S
from tests.tiny import write_tiny_checkpoint

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.processes, pytest.mark.ray]

ROOT = Path(__file__).parents[2]
NUM_ROWS = 400
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
CONFIG: dict[str, Any] = {
    "tokenizer": "bytes",
    "device": "cpu",
    "prefill": "P2",
    "decode": "T2",
    "max_num_seqs": 8,
    "num_device_blocks": 700,
    "num_host_blocks": 400,
    "served_model_name": "tiny",
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in CONFIG.items()]


class Node:
    """A host of the cluster: all that runs below its `ray start`."""

    def __init__(self, *flags: str) -> None:
        self.process = subprocess.Popen(
            ["ray", "start", "--block", "--num-cpus=2", "--object-store-memory=200000000", *flags],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            lines.append(line)
            if "Ray runtime started" in line:
                break
        else:
            raise AssertionError("".join(lines))

    def processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def engines(self) -> list[psutil.Process]:
        """Those of actors and replicas: they were spawned, and what they start was forked."""
        return [p for p in self.processes() if "spawn_main" in cmdline(p)]

    def die(self) -> None:
        """As if the power went."""
        for process in [psutil.Process(self.process.pid), *self.processes()]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(PATIENCE_S)


class Nodes:
    """The cluster. What dies is made good by `fill`."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._folder = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")  # paths of sockets must be short
        self.address = f"127.0.0.1:{port}"
        self.head = Node(
            *("--head", f"--port={port}", "--include-dashboard=false"),
            *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
            f"--temp-dir={self._folder.name}",
        )
        self.other = self._add()

    def _add(self) -> Node:
        return Node(
            f"--address={self.address}", "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"
        )

    def fill(self) -> None:
        if self.other.process.poll() is not None:
            self.other = self._add()

    def close(self) -> None:
        self.other.die()
        self.head.die()
        self._folder.cleanup()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.close()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vocab=260, max_position=512)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of both endpoints and many lengths, one bad in thirty; greedy."""
    path, moments = tmp_path_factory.mktemp("rows") / "in.jsonl", random.Random(3)
    with path.open("w") as file:
        for number in range(NUM_ROWS):
            text = f"{number} " + "abc" * moments.randrange(1, 20)
            limit = -1 if number % 30 == 7 else moments.randrange(1, 24)
            body: dict[str, Any] = {"model": "tiny", "max_tokens": limit, "temperature": 0, "ignore_eos": True}
            url, prompt = "/v1/completions", {"prompt": text}
            if number % 2:
                url, prompt = "/v1/chat/completions", {"messages": [{"role": "user", "content": text}]}  # type: ignore[dict-item]
            row = {"custom_id": str(number), "method": "POST", "url": url, "body": body | prompt}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    output = tmp_path_factory.mktemp("undisturbed") / "out.jsonl"
    with batch_run(checkpoint, rows, output) as run:
        assert run.wait(2 * PATIENCE_S) == 0
    return results(output)


@contextmanager
def batch_run(checkpoint: Path, rows: Path, output: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """`seesaw batch run` until the block ends."""
    command = [sys.executable, "-m", "seesaw.server.cli", "batch", "run", str(checkpoint)]
    with (output.parent / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "-i", str(rows), "-o", str(output), *FLAGS, *flags],
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def results(output: Path) -> list[Any]:
    """What greedy rows are always answered with."""
    answers = []
    for line in output.read_text().splitlines():
        row = json.loads(line)
        body, status = row["response"]["body"], row["response"]["status_code"]
        texts = [choice.get("text", choice.get("message")) for choice in body.get("choices", [])]
        num_tokens = body["usage"]["total_tokens"] if status == 200 else 0
        answers.append((row["custom_id"], status, texts, num_tokens, body.get("error")))
    return answers


def num_kept(output: Path) -> int:
    """Rows of an output that is not finished."""
    with suppress(sqlite3.Error):
        store = sqlite3.connect(f"file:{output}.partial/jobs.sqlite?mode=ro", uri=True)
        try:
            return int(store.execute("select count(*) from results").fetchone()[0])
        finally:
            store.close()
    return 0


def until(what: str, holds: Callable[[], object], run: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline and (run is None or run.poll() is None), what
        time.sleep(0.05)


def test_hosts_and_engines_that_die_cost_no_row(
    cluster: Nodes, checkpoint: Path, rows: Path, undisturbed: list[Any], tmp_path: Path
) -> None:
    cluster.fill()
    output = tmp_path / "out.jsonl"
    with batch_run(checkpoint, rows, output, f"--ray={cluster.address}") as run:
        until("nothing is kept", lambda: num_kept(output) >= 10 and cluster.head.engines(), run)
        cluster.head.engines()[0].kill()
        until("it does not go on", lambda: num_kept(output) >= 80 and cluster.other.engines(), run)
        cluster.other.die()
        assert run.wait(3 * PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert results(output) == undisturbed
    until("an engine is left", lambda: not cluster.head.engines())


def test_a_run_that_is_ended_goes_on(
    cluster: Nodes, checkpoint: Path, rows: Path, undisturbed: list[Any], tmp_path: Path
) -> None:
    cluster.fill()
    output = tmp_path / "out.jsonl"
    for number, num_rows in ((signal.SIGTERM, 20), (signal.SIGKILL, 60)):
        with batch_run(checkpoint, rows, output, f"--ray={cluster.address}") as run:
            until("nothing is kept", lambda: num_kept(output) >= num_rows, run)  # noqa: B023
            run.send_signal(number)
            assert run.wait(PATIENCE_S) == (143 if number == signal.SIGTERM else -number)
        log = (tmp_path / "log").read_text()
        assert (f"of {NUM_ROWS} rows done: run the same command again" in log) == (number == signal.SIGTERM)
        assert "Traceback" not in log
        until("an engine is left", lambda: not cluster.head.engines() and not cluster.other.engines())
    with batch_run(checkpoint, rows, output, "--ray", cluster.address, "--ray-engines=1") as run:
        assert run.wait(3 * PATIENCE_S) == 0, (tmp_path / "log").read_text()
    assert results(output) == undisturbed


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--ray=CLUSTER", "--max-model-len=100000"], "max_model_len"),
        (["--ray=127.0.0.1:1"], "cannot connect to a Ray cluster at 127.0.0.1:1"),
    ],
)
def test_what_cannot_work_is_a_sentence(
    cluster: Nodes, checkpoint: Path, rows: Path, tmp_path: Path, flags: list[str], says: str
) -> None:
    flags = [flag.replace("CLUSTER", cluster.address) for flag in flags]
    with batch_run(checkpoint, rows, tmp_path / "out.jsonl", *flags) as run:
        assert run.wait(2 * PATIENCE_S) == 2, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    last = log.splitlines()[-1]
    assert last.startswith("seesaw: error: ") and says in last and "Traceback" not in log, log


@pytest.fixture
def url(cluster: Nodes, checkpoint: Path) -> Iterator[str]:
    """Two replicas behind Ray's proxies."""
    from ray import serve

    from seesaw.server.ray.deployment import build

    cluster.fill()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(cluster.address, logging_level="ERROR", log_to_driver=False)
    try:
        serve.start(http_options={"port": port})
        serve.run(build({"model": str(checkpoint), "num_replicas": "2", **CONFIG}))
        yield f"http://127.0.0.1:{port}/v1"
        family = [*cluster.head.engines(), *cluster.other.engines()]
        serve.shutdown()
        assert still_running(family, PATIENCE_S) == {}
    finally:
        ray.shutdown()


def test_replicas_answer_and_one_that_dies_is_replaced(cluster: Nodes, url: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S)

    def complete() -> str:
        answer = client.completions.create(model="tiny", prompt="hello", max_tokens=8, temperature=0)
        return answer.choices[0].text

    text = complete()
    stream = client.completions.create(model="tiny", prompt="hello", max_tokens=8, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == text
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="none", prompt="hello")

    [victim] = cluster.head.engines()
    victim.kill()
    until("no engine is in its place", lambda: victim not in cluster.head.engines() and cluster.head.engines())

    def all_answer() -> bool:
        with suppress(openai.APIError):
            return {complete() for _ in range(20)} == {text}
        return False

    until("a replica does not answer", all_answer)
