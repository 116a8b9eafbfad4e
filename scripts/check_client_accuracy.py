"""Hold the load test against a server that logs when it really sent each token, and find the rate at which the client
itself is the limit.

Both are processes of their own, on one core each where there are two; the clock is the system's monotonic one. The
same arithmetic (`clients.figures`) runs over the client's records and over the server's log. Exits with 1 if a figure
is off by more than 2 % at 1, 64 or 512 streams. A script, not a test: on a busy machine it measures the machine.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from seesaw.clients.figures import figures
from seesaw.clients.record import Record

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.02
FIRST_S = 0.5
INPUT_TOKENS = 8
# All at once, the server would take its time to accept them, which its log cannot know of.
ARRIVALS_PER_S = 200
# Streams, mean seconds between the tokens of a stream, tokens of a stream.
CASES = ((1, 0.01, 500), (64, 0.02, 400), (512, 0.1, 200))
LIMIT_STREAMS = 512
LIMIT_RATES = (10_000, 20_000, 30_000, 40_000, 60_000)  # tokens/s while all streams run
LIMIT_SECONDS = 6.0
COMPARED = {
    "mean_ttft_ms": "mean TTFT",
    "median_ttft_ms": "median TTFT",
    "p99_ttft_ms": "P99 TTFT",
    "mean_itl_ms": "mean ITL",
    "median_itl_ms": "median ITL",
    "p99_itl_ms": "P99 ITL",
    "mean_tpot_ms": "mean TPOT",
    "output_throughput": "tokens/s",
}


def measure(streams: int, interval_s: float, tokens: int) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Run one load; the client's figures, the log's, and the client's CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        log, result = Path(folder) / "log.json", Path(folder) / "result.json"
        port = _free_port()
        command = [sys.executable, str(ROOT / "scripts" / "sse_server.py"), "--port", str(port), "--log", str(log)]
        command += ["--first-s", str(FIRST_S), "--interval-s", str(interval_s)]
        server = subprocess.Popen(_on_core(0, command), stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            command = [
                sys.executable,
                "-m",
                "seesaw.clients.load_test",
                "--port",
                str(port),
                "--num-prompts",
                str(streams),
            ]
            command += ["--random-input-len", str(INPUT_TOKENS), "--random-output-len", str(tokens), "--disable-tqdm"]
            command += ["--request-rate", str(ARRIVALS_PER_S)]
            command += ["--save-result", "--result-dir", folder, "--result-filename", result.name]
            before_s = _children_cpu_s()
            subprocess.run(_on_core(1, command), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            cpu_s = _children_cpu_s() - before_s
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()
        return json.loads(result.read_text()), truth(json.loads(log.read_text())), cpu_s


def truth(log: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of what the server sent, by its own clock."""
    records = []
    for entry in log:
        sent_s, start_s = entry["sent_s"], entry["received_s"]
        itls_s = [later - earlier for earlier, later in pairwise(sent_s)]
        records.append(
            Record(
                input_tokens=INPUT_TOKENS,
                output_tokens=len(sent_s),
                queue_s=0.0,
                start_s=start_s,
                ttft_s=sent_s[0] - start_s,
                itls_s=itls_s,
                latency_s=sent_s[-1] - start_s,
                text="",
                error="",
            )
        )
    return figures(records, min(record.start_s for record in records))


def errors(reported: dict[str, Any], logged: dict[str, Any]) -> dict[str, float]:
    """By how much each compared figure is off, as a share of the log's."""
    return {key: reported[key] / logged[key] - 1 for key in COMPARED}


def check_accuracy() -> bool:
    print(f"{'streams':>8} {'figure':<12} {'reported':>10} {'logged':>10} {'off':>8}")
    good = True
    for case in CASES:
        reported, logged, _ = measure(*case)
        assert reported["completed"] == case[0] and reported["total_output_tokens"] == logged["total_output_tokens"]
        for key, share in errors(reported, logged).items():
            unit = "" if key == "output_throughput" else " ms"
            mark = "" if abs(share) <= TOLERANCE else "  <-- more than 2 %"
            good &= not mark
            values = f"{reported[key]:>10.2f} {logged[key]:>10.2f}"
            print(f"{case[0]:>8} {COMPARED[key] + unit:<12} {values} {share:>+8.2%}{mark}")
    return good


def find_limit() -> None:
    _, _, start_cpu_s = measure(1, 0.01, 1)  # what the process costs before it streams
    print(f"\n{LIMIT_STREAMS} streams, tokens/s in the best second")
    print(f"{'logged':>8} {'reported':>8} {'worst figure off':>24} {'client us/token':>16}")
    for rate in LIMIT_RATES:
        tokens = round(LIMIT_SECONDS * rate / LIMIT_STREAMS)
        reported, logged, cpu_s = measure(LIMIT_STREAMS, LIMIT_STREAMS / rate, tokens)
        off = errors(reported, logged)
        worst = max(off, key=lambda key: abs(off[key]))
        each_us = (cpu_s - start_cpu_s) / reported["total_output_tokens"] * 1e6
        peaks = [result["max_output_tokens_per_s"] for result in (logged, reported)]
        print(f"{peaks[0]:>8.0f} {peaks[1]:>8.0f} {COMPARED[worst]:>15} {off[worst]:>+8.1%} {each_us:>16.1f}")
        if abs(off[worst]) > TOLERANCE:
            print(f"the client is the limit at {peaks[0]:.0f} tokens/s, one token an event")
            return
    print("the client was never the limit")


def _on_core(core: int, command: list[str]) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core % len(cores)]), *command]


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> int:
    good = check_accuracy()
    find_limit()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
