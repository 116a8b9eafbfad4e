"""Does the feeder keep the engine as busy as `LLM` does? One job on the simulated host, through both, in turn.

    python scripts/batch_throughput.py [--num-rows N] [--step-s S] [--rounds N]

The engine computes nothing; a step takes so long, or no time: then nothing asks more of the feeder. Both ways are told
in seconds, and in those of processors, since others may use these, too. Of the server's processes it also says how
their memory grew, from when a fifth of the rows had ended.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import httpx
import numpy as np
import numpy.typing as npt
import psutil
from memory_growth import MemoryGrowth
from soak_server import served_url

from seesaw.engine.llm import LLM
from seesaw.engine.sampling.params import SamplingParams

POLL_S = 0.2
TIMEOUT_S = 600.0
ENDED = ("completed", "failed", "expired", "cancelled")


class Took(NamedTuple):
    seconds: float
    busy_s: float  # of the process that took the most of a processor


def rows(count: int) -> tuple[list[str], list[int]]:
    """Prompts, and the lengths of their outputs."""
    return [f"row {number} " + "x" * (37 * number % 40) for number in range(count)], [
        4 + 53 * number % 16 for number in range(count)
    ]


def through_llm(num_rows: int, step_s: float) -> Took:
    """In a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_generate, (num_rows, step_s))


def _generate(num_rows: int, step_s: float) -> Took:
    prompts, lengths = rows(num_rows)
    params = [SamplingParams(max_tokens=length, ignore_eos=True) for length in lengths]
    with LLM("", executor="simulated", simulated_step_s=step_s) as llm:
        start_s, busy_s = time.perf_counter(), time.process_time()
        results = llm.generate(prompts, params)
        took = Took(time.perf_counter() - start_s, time.process_time() - busy_s)
    assert len(results) == num_rows
    return took


def through_server(num_rows: int, step_s: float) -> tuple[Took, MemoryGrowth]:
    """From when the batch was made until it had its files, and what was seen meanwhile."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), step_s) as (url, processes):
        with httpx.Client(base_url=url, timeout=TIMEOUT_S) as http:
            id = _begin(http, num_rows)
            start_s, busy_s, memory = time.perf_counter(), busy_of(processes), MemoryGrowth(processes)
            while (batch := http.get(f"/v1/batches/{id}").json())["status"] not in ENDED:
                memory.look(batch["request_counts"]["completed"])
                time.sleep(POLL_S)
            took = Took(time.perf_counter() - start_s, max(busy_of(processes) - busy_s))
    assert batch["request_counts"]["completed"] == num_rows, batch
    return took, memory


def busy_of(processes: Sequence[psutil.Process]) -> npt.NDArray[np.float64]:
    """Seconds that each had of a processor."""
    return np.array([sum(process.cpu_times()[:2]) for process in processes])


def _begin(http: httpx.Client, num_rows: int) -> str:
    lines = (
        {
            "custom_id": f"{number}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": prompt, "max_tokens": length, "ignore_eos": True},
        }
        for number, (prompt, length) in enumerate(zip(*rows(num_rows), strict=True))
    )
    data = "\n".join(map(json.dumps, lines)).encode()
    file = http.post("/v1/files", files={"file": ("in.jsonl", data)}, data={"purpose": "batch"}).raise_for_status()
    asked = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    return str(http.post("/v1/batches", json=asked).raise_for_status().json()["id"])


@contextmanager
def serving(folder: Path, step_s: float) -> Iterator[tuple[str, list[psutil.Process]]]:
    """The URL of a server, and its processes."""
    command = [sys.executable, "-m", "seesaw.server.cli", "serve", "--executor", "simulated", "--port", "0"]
    command += ["--data-dir", str(folder / "data"), "--log-level", "warning"]
    command += ["--simulated-step-s", str(step_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            url = _ready_at(server.stdout)
            process = psutil.Process(server.pid)
            yield url, [process, *process.children(recursive=True)]
        finally:
            server.terminate()


def _ready_at(out: IO[str]) -> str:
    for line in out:
        if url := served_url(line):
            return url
    raise RuntimeError("the server ended before it was ready")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--num-rows", type=int, default=200_000, help="of the job (default: 200000)")
    parser.add_argument("--step-s", type=float, default=0.0, help="what a step of the engine takes (default: 0)")
    parser.add_argument("--rounds", type=int, default=1, help="how often both run it (default: 1)")
    args = parser.parse_args(argv)
    for _ in range(args.rounds):
        llm = through_llm(args.num_rows, args.step_s)
        batch, memory = through_server(args.num_rows, args.step_s)
        share = llm.seconds / batch.seconds
        print(f"LLM {llm.seconds:.1f} s, batch {batch.seconds:.1f} s: {share:.1%} of its throughput")
        print(f"  the busiest process: {llm.busy_s:.1f} and {batch.busy_s:.1f} s of a processor", flush=True)
        for number, (megabytes, slope) in enumerate(memory.slopes()):
            print(f"  process {number}: {megabytes:.0f} MB, {slope:+.1f} bytes a row", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
