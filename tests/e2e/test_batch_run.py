"""`seesaw batch run` over real workers: killed, it comes to what an undisturbed run does."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from soak_server import still_running

from tests.patience import PATIENCE_S
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

FLAGS = ["--prefill=T1", "--device=cpu", "--tokenizer=bytes", "--num-device-blocks=200"]
FLAGS += [
    "--max-num-seqs=8",
    "--max-num-batched-tokens=128",
    "--chat-template={% for m in messages %}{{ m.content }}{% endfor %}",
]
NUM_ROWS = 60


def write_rows(path: Path) -> Path:
    """Greedy ones of many lengths, every third a chat, and one in thirty bad."""
    draw = random.Random(0)
    with path.open("w") as file:
        for number in range(NUM_ROWS):
            text, limit = f"{number} " + "abc" * draw.randrange(1, 20), draw.randrange(1, 40)
            body: dict[str, Any] = {"max_tokens": limit if number % 30 else -1, "temperature": 0, "ignore_eos": True}
            is_chat = number % 3 == 0
            body |= {"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text}
            url = "/v1/chat/completions" if is_chat else "/v1/completions"
            file.write(json.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": body}) + "\n")
    return path


@contextmanager
def running(model: Path, source: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    run_folders = Path(tempfile.mkdtemp(prefix="t-"))  # not below `tmp_path`: socket paths must be short
    process = subprocess.Popen(
        [sys.executable, "-m", "seesaw.server.cli", "batch", "run", model, "-i", source, "-o", output, *FLAGS],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(run_folders)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
    run_folders.rmdir()  # it is empty


def kill_when_done(process: subprocess.Popen[str], output: Path, num_rows: int) -> None:
    """`kill -9` once so many rows are done, unless all are by then. Nothing of it is left but their results."""
    log, deadline = output.with_name(f"{output.name}.partial") / "results.log", time.monotonic() + PATIENCE_S
    family: list[psutil.Process] = []
    while process.poll() is None:
        with suppress(FileNotFoundError, psutil.NoSuchProcess):
            num_done = log.read_bytes().count(b"\n")
            family = family or (psutil.Process(process.pid).children(recursive=True) if num_done else [])
            if num_done >= num_rows:
                break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait(PATIENCE_S)
    assert still_running(family, PATIENCE_S) == {}


def answers(output: Path) -> list[tuple[str, int, Any]]:
    """What is to be equal of each row."""
    rows = [json.loads(line) for line in output.read_bytes().splitlines()]
    return [
        (row["custom_id"], row["response"]["status_code"], body.get("choices", body.get("error")))
        for row in rows
        for body in [row["response"]["body"]]
    ]


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "tiny", vocab=260, max_position=512)
    source, output = write_rows(tmp_path / "in.jsonl"), tmp_path / "out.jsonl"
    with running(model, source, output) as process:
        assert process.wait(PATIENCE_S) == 0
    undisturbed = answers(output)
    assert [number for number, _, _ in undisturbed] == [str(number) for number in range(NUM_ROWS)]
    assert [int(number) for number, status, _ in undisturbed if status != 200] == list(range(0, NUM_ROWS, 30))
    output.unlink()
    with running(model, source, output) as process:
        kill_when_done(process, output, NUM_ROWS // 3)
    with running(model, source, output) as process:
        assert process.wait(PATIENCE_S) == 0
    assert answers(output) == undisturbed
