"""Batches over real workers: as online, and complete and exact whichever process is killed in their midst.

SEESAW_TEST_KILLS says how many moments there are (default: 2, the engine's and a worker's; the server's are in
`tests/server/batches`).
"""

from __future__ import annotations

import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from openai.types import Batch
from soak_server import still_running

from tests.e2e.served import Served, cmdline, serving
from tests.patience import PATIENCE_S, PAUSE_S
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

NUM_KILLS = int(os.environ.get("SEESAW_TEST_KILLS", "2"))
NUM_ROWS = 100 if NUM_KILLS < 10 else 1000
NUM_CHATS = 50
FLAGS = ["--prefill", "P2", "--decode", "T2", "--tokenizer", "bytes", "--num-device-blocks", "700"]
FLAGS += ["--num-host-blocks", "400", "--max-num-seqs", "8", "--served-model-name", "tiny"]
FLAGS += ["--chat-template", "{% for m in messages %}{{ m.content }}{% endfor %}"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), vocab=260, max_position=512)


def client(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S)


def bodies(count: int, chats: bool) -> list[dict[str, Any]]:
    """Greedy ones of many lengths, and one bad in thirty."""
    moments = random.Random(count)
    made: list[dict[str, Any]] = []
    for number in range(count):
        text = f"{number} " + "abc" * moments.randrange(1, 20)
        prompt = {"messages": [{"role": "user", "content": text}]} if chats else {"prompt": text}
        limit = -1 if number % 30 == 7 else moments.randrange(1, 24)
        made.append({"model": "tiny", "max_tokens": limit, "temperature": 0, "ignore_eos": True} | prompt)
    return made


def begin(jobs: openai.OpenAI, endpoint: Any, rows: list[dict[str, Any]]) -> str:
    lines = (
        json.dumps({"custom_id": str(number), "method": "POST", "url": endpoint, "body": body})
        for number, body in enumerate(rows)
    )
    file = jobs.files.create(file=("in.jsonl", "\n".join(lines).encode()), purpose="batch")
    return jobs.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h").id


def until(jobs: openai.OpenAI, id: str, num_rows: int) -> Batch:
    """The batch once so many rows have ended, or it has."""
    deadline = time.monotonic() + 2 * PATIENCE_S
    while (batch := jobs.batches.retrieve(id)).status != "completed":
        counts = batch.request_counts
        if counts is not None and counts.completed + counts.failed >= num_rows:
            break
        assert time.monotonic() < deadline, batch
        time.sleep(PAUSE_S)
    return batch


def results(jobs: openai.OpenAI, batch: Batch) -> list[tuple[int, Any]]:
    """Status and what is to be equal of each row, in order; each once."""
    found: dict[int, tuple[int, Any]] = {}
    for file in (batch.output_file_id, batch.error_file_id):
        rows = [json.loads(line) for line in jobs.files.content(file or "").text.splitlines()]
        numbers = [int(row["custom_id"]) for row in rows]
        assert numbers == sorted(numbers) and not found.keys() & set(numbers)
        answers = [(row["response"]["status_code"], told(row["response"]["body"])) for row in rows]
        found |= dict(zip(numbers, answers, strict=True))
    return [answer for _, answer in sorted(found.items())]


def told(body: dict[str, Any]) -> Any:
    """What does not depend on when it was asked."""
    if "error" in body:
        return body["error"]
    return body["choices"], body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]


def post(http: httpx.Client, endpoint: str, body: dict[str, Any]) -> httpx.Response:
    return http.post(endpoint, json=body)


@pytest.fixture(scope="module")
def undisturbed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[int, Any]]]:
    """The results of both endpoints, of batches that ran beside each other; and the same requests, sent online."""
    made = {"/v1/completions": bodies(NUM_ROWS, False), "/v1/chat/completions": bodies(NUM_CHATS, True)}
    folder = tmp_path_factory.mktemp("undisturbed")
    with serving(checkpoint, folder, *FLAGS, "--data-dir", str(folder / "data")) as served:
        jobs = client(served)
        ids = {endpoint: begin(jobs, endpoint, rows) for endpoint, rows in made.items()}
        found = {endpoint: results(jobs, until(jobs, id, 1 << 30)) for endpoint, id in ids.items()}
        with httpx.Client(base_url=served.url, timeout=PATIENCE_S) as http, ThreadPoolExecutor(16) as threads:
            for endpoint, rows in made.items():
                for response, result in zip(
                    threads.map(partial(post, http, endpoint), rows), found[endpoint], strict=True
                ):
                    assert (response.status_code, told(response.json())) == result
    return found


def test_rows_are_answered_as_requests_are(undisturbed: dict[str, list[tuple[int, Any]]]) -> None:
    assert [len(found) for found in undisturbed.values()] == [NUM_ROWS, NUM_CHATS]
    assert sum(status == 400 for status, _ in undisturbed["/v1/chat/completions"]) == 2


def test_whatever_is_killed_every_row_has_one_result(
    checkpoint: Path, tmp_path: Path, undisturbed: dict[str, list[tuple[int, Any]]]
) -> None:
    moments, id = random.Random(1), ""
    for number in range(NUM_KILLS + 1):
        folder = tmp_path / str(number)
        folder.mkdir()
        with serving(checkpoint, folder, *FLAGS, "--data-dir", str(tmp_path / "data")) as served:
            jobs = client(served)
            id = id or begin(jobs, "/v1/completions", bodies(NUM_ROWS, False))
            if number == NUM_KILLS:
                found = results(jobs, until(jobs, id, 1 << 30))
                break
            until(jobs, id, (number + 1) * NUM_ROWS // (NUM_KILLS + 1) - moments.randrange(20))
            family = served.children()
            [engine] = [p for p in family if "spawn_main" in cmdline(p) and p.children()]
            victim = [engine, moments.choice(served.workers()), psutil.Process(served.process.pid)][number % 3]
            victim.kill()
            served.process.wait(PATIENCE_S)
            assert still_running(family, PATIENCE_S) == {}
    assert found == undisturbed["/v1/completions"]


def test_a_batch_goes_on_with_the_next_engine(
    checkpoint: Path, tmp_path: Path, undisturbed: dict[str, list[tuple[int, Any]]]
) -> None:
    flags = ["--data-dir", str(tmp_path / "data"), "--restart-engine=2"]
    with serving(checkpoint, tmp_path, *FLAGS, *flags) as served:
        jobs = client(served)
        id = begin(jobs, "/v1/completions", bodies(NUM_ROWS, False))
        for share, victim in ((3, "engine"), (2, "worker 1")):
            until(jobs, id, NUM_ROWS // share)
            served.find(victim)[0].kill()
        assert results(jobs, until(jobs, id, 1 << 30)) == undisturbed["/v1/completions"]
        served.until("not both were started again", lambda m: m["engine_restarts_total"] == 2)
