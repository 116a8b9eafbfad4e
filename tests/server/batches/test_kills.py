"""`kill -9` of a server in the midst of a batch, as often as you like: SEESAW_TEST_KILLS says how often (default: 2).

The engine is a fake one, which answers with the prompt, so a row's result shows whose it is.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import openai
from openai.types import Batch
from soak_server import still_running

from tests.patience import PATIENCE_S, PAUSE_S
from tests.server.batches.harness import URL, expected, lines, prompts
from tests.server.served import served

NUM_KILLS = int(os.environ.get("SEESAW_TEST_KILLS", "2"))
NUM_ROWS = max(200, 33 * NUM_KILLS)


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S)


def until(jobs: openai.OpenAI, id: str, num_rows: int) -> Batch:
    """The batch once so many rows have results, or it has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while (batch := jobs.batches.retrieve(id)).status != "completed":
        if batch.request_counts is not None and batch.request_counts.completed >= num_rows:
            break
        assert time.monotonic() < deadline, batch
        time.sleep(PAUSE_S)
    return batch


def text_of(line: str) -> tuple[str, str]:
    """Custom id and answer of a result."""
    row = json.loads(line)
    return row["custom_id"], row["response"]["body"]["choices"][0]["text"]


def test_every_row_has_one_result_wherever_the_server_is_killed(tmp_path: Path) -> None:
    moments = random.Random(0)
    flags = [f"--data-dir={tmp_path / 'data'}", "--max-queued-requests=16"]  # so that few rows are in flight
    targets = sorted(moments.randrange(NUM_ROWS * 3 // 4) for _ in range(NUM_KILLS))
    id = ""
    for number, target in enumerate(targets):
        temp = tmp_path / f"temp-{number}"
        temp.mkdir()
        with served("echo", temp, *flags) as server:
            jobs = client(server.wait_ready())
            if not id:
                file = jobs.files.create(file=("in.jsonl", lines(prompts(NUM_ROWS))), purpose="batch")
                batch = jobs.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
                id = batch.id
            until(jobs, id, target)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait(PATIENCE_S)
            assert still_running(server.children, PATIENCE_S) == {}
    (tmp_path / "last").mkdir()
    with served("echo", tmp_path / "last", *flags) as server:
        jobs = client(server.wait_ready())
        batch = until(jobs, id, NUM_ROWS + 1)
        assert batch.request_counts is not None and batch.request_counts.completed == NUM_ROWS
        answers = [text_of(line) for line in jobs.files.content(batch.output_file_id or "").text.splitlines()]
        assert answers == [*expected(NUM_ROWS).items()]
