"""The load test against our own server with a real model: totals are the server's own counters."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from seesaw.clients import arguments, load_test
from seesaw.clients.figures import figures
from seesaw.clients.record import from_columns
from seesaw.clients.sharegpt import sharegpt
from seesaw.clients.wheels import FetchError
from tests.patience import PATIENCE_S

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.model
@pytest.mark.anyio
@pytest.mark.parametrize("rate", ["4"])
async def test_totals_equal_the_servers_counters(smollm2: Path, tmp_path: Path, rate: str) -> None:
    try:
        path = sharegpt()
    except FetchError as error:
        pytest.skip(str(error))
    command = [sys.executable, "-m", "seesaw.server.cli", "serve", str(smollm2), "--prefill", "P2", "--decode", "T2"]
    command += ["--port", "0", "--policy", "paper", "--surge-min-tokens", "256", "--log-level", "error"]
    command += ["--max-model-len", "2048", "--num-host-blocks", "256"]
    command += ["--max-num-batched-tokens", "256", "--max-num-seqs", "8"]  # larger steps take long to time at the start
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None
        url = found[0]
        flags = ["--base-url", url, "--dataset-name", "sharegpt", "--dataset-path", str(path), "--num-prompts", "6"]
        flags += ["--sharegpt-output-len", "6", "--ignore-eos", "--temperature", "0", "--request-rate", rate]
        flags += ["--save-result", "--save-detailed", "--result-dir", str(tmp_path), "--result-filename", "x.json"]
        await load_test.run(arguments.parse(flags, "x"))
        with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE_S) as response:
            metrics = response.read().decode()
    finally:
        process.terminate()
        process.wait(PATIENCE_S)
    saved = json.loads((tmp_path / "x.json").read_text())
    assert (saved["completed"], saved["failed"], saved["total_output_tokens"]) == (6, 0, 36)
    again = figures(from_columns(saved), saved["start_time"])
    assert {key: saved[key] for key in again} == again
    for counter, total in (("prompt_tokens", "total_input_tokens"), ("generation_tokens", "total_output_tokens")):
        (counted,) = re.findall(rf"^seesaw:{counter}_total (\S+)$", metrics, re.MULTILINE)
        assert float(counted) == saved[total]
    (ended,) = re.findall(r'^seesaw:request_success_total\{finished_reason="length"\} (\S+)$', metrics, re.MULTILINE)
    assert float(ended) == saved["completed"]
