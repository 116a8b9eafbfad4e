"""Hold our load test against vLLM's and guidellm's on one server: the same load, one after another.

    .venv/bin/python scripts/check_load_testers.py --base-url http://127.0.0.1:8000 --tokenizer path/to/model \\
        --vllm path/to/python --guidellm path/to/guidellm

Both are installed by hand, in environments of their own; vLLM's client needs no GPU, but what `vllm` imports. Exits
with 1 if a figure of theirs is off ours by more than 2 %. A script, not a test: on a busy machine it measures the
machine. And time to first token varies with where in a step of the server a request comes: take one with short steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 0.02
PATHS = {"text": "/v1/completions", "chat": "/v1/chat/completions"}
COMPARED = {
    "total_input_tokens": "input",
    "total_output_tokens": "output",
    "output_throughput": "tokens/s",
    "mean_ttft_ms": "TTFT ms",
    "mean_itl_ms": "ITL ms",
}
GUIDELLM_LATENCIES = {"time_to_first_token_ms": "mean_ttft_ms", "inter_token_latency_ms": "mean_itl_ms"}


def commands(args: argparse.Namespace, model: str, kind: str, result: Path) -> dict[str, list[str]]:
    """Of each tester, what writes its result."""
    load = ["--num-prompts", args.num_prompts, "--max-concurrency", args.max_concurrency]
    load += ["--random-input-len", args.input_len, "--random-output-len", args.output_len, "--ignore-eos"]
    where = ["--base-url", args.base_url, "--backend", "openai" if kind == "text" else "openai-chat"]
    where += ["--endpoint", PATHS[kind], "--model", model, "--tokenizer", args.tokenizer]
    common = [*where, *load, "--temperature", "0", "--save-result", "--result-filename", result, "--disable-tqdm"]
    found = {"ours": [sys.executable, "-m", "seesaw.clients.load_test", "--no-tokenize-prompt", *common]}
    if args.vllm:
        found["vllm"] = [args.vllm, "-m", "vllm.entrypoints.cli.main", "bench", "serve", *common]
    if args.guidellm:
        found["guidellm"] = [
            *(args.guidellm, "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={args.base_url},request_format={PATHS[kind]},model={model}"),
            *("--profile", f"kind=concurrent,streams={args.max_concurrency}"),
            *("--constraint", f"kind=max_requests,count={args.num_prompts}"),
            *("--data", f"kind=synthetic_text,prompt_tokens={args.input_len},output_tokens={args.output_len}"),
            *("--tokenizer", f"kind=hf_auto,model={args.tokenizer}", "--output", f"kind=json,path={result}"),
        ]
    return {name: list(map(str, command)) for name, command in found.items()}


def from_guidellm(report: Mapping[str, Any]) -> dict[str, float]:
    """Its figures by our keys. Its own rates are means over seconds: ours are totals over the time that they took."""
    benchmark = report["benchmarks"][0]
    requests = benchmark["requests"]["successful"]
    times = [request["info"]["timings"] for request in requests]
    duration_s = max(each["request_end"] for each in times) - min(each["request_start"] for each in times)
    num_output = sum(request["output_metrics"]["text_tokens"] for request in requests)
    metrics = {name: benchmark["metrics"][name]["successful"]["mean"] for name in GUIDELLM_LATENCIES}
    return {
        "total_input_tokens": sum(request["input_metrics"]["text_tokens"] for request in requests),
        "total_output_tokens": num_output,
        "output_throughput": num_output / duration_s,
        **{ours: metrics[theirs] for theirs, ours in GUIDELLM_LATENCIES.items()},
    }


def measure(command: list[str], result: Path) -> dict[str, float]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode or not result.is_file():
        sys.exit(f"{command[0]} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    report = json.loads(result.read_text())
    return from_guidellm(report) if "benchmarks" in report else report


def median_of(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What else the machine does comes and goes; the testers take turns."""
    return {key: statistics.median(each[key] for each in rounds) for key in COMPARED}


def compare(figures: Mapping[str, Mapping[str, float]]) -> bool:
    """Print what each tester says, and whether all are near ours."""
    are_near = True
    for name, each in figures.items():
        cells = []
        for key, label in COMPARED.items():
            off = each[key] / figures["ours"][key] - 1
            are_near = are_near and abs(off) <= TOLERANCE
            cells.append(f"{label} {each[key]:9.2f} {off:+7.2%}{'' if abs(off) <= TOLERANCE else ' !'}")
        print(f"{name:>9}  " + "   ".join(cells), flush=True)
    return are_near


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare load testers on one server.")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter that has vllm")
    parser.add_argument("--guidellm", metavar="COMMAND")
    for name, default in (
        ("num-prompts", 64),
        ("max-concurrency", 8),
        ("input-len", 100),
        ("output-len", 100),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    with urlopen(f"{args.base_url}/v1/models") as response:
        model = json.load(response)["data"][0]["id"]
    are_near = True
    for kind in PATHS:
        print(f"{kind}: {args.num_prompts} requests, {args.max_concurrency} at once")
        rounds: dict[str, list[dict[str, float]]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for number in range(args.rounds + 1):
                for name in commands(args, model, kind, Path()):
                    result = Path(folder) / f"{name}-{number}.json"
                    figures = measure(commands(args, model, kind, result)[name], result)
                    if number:  # the first warms the server up
                        rounds.setdefault(name, []).append(figures)
        are_near = compare({name: median_of(each) for name, each in rounds.items()}) and are_near
    return 0 if are_near else 1


if __name__ == "__main__":
    sys.exit(main())
