"""Throughput of the engine without HTTP, over dummy weights: the rows of docs/performance.md.

    python scripts/bench_offline.py --shape 70b --prefill T4 --workload 512x32:256 --repeat 2
    python scripts/bench_offline.py --shape 70b --prefill P4 --lengths ../shared/data/sharegpt_2000_lens.csv --first 800

Prompts are random token ids, all greedy, ignore_eos, in file order, all at once. Prints one JSON line for each run.
Further flags (`--max-num-seqs 1024`) are fields of `EngineConfig`.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import zmq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.config import EngineConfig
from engine.core import Core
from engine.executor import make_executor
from engine.messages import Add
from engine.sampling import SamplingParams

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 14336},
    "70b": {"num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64, "intermediate_size": 28672},
}
LLAMA3 = {
    "model_type": "llama",
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
}
# One of four stages, alone: what P4 could do at most, without links, filling and draining.
SHAPES["70b-stage"] = SHAPES["70b"] | {"num_hidden_layers": 20}
Lengths = list[tuple[int, int]]  # of each request: prompt and output tokens


def parse_workload(text: str) -> Lengths:
    """`512x32:256` is 512 requests of 32 prompt and 256 output tokens."""
    count, _, lengths = text.partition("x")
    prompt, _, output = lengths.partition(":")
    return [(int(prompt), int(output))] * int(count)


def read_lengths(path: Path, first: int) -> Lengths:
    """The first rows of a CSV with a header, whose two last columns are prompt and output tokens."""
    with path.open() as file:
        rows = list(csv.reader(file))[1 : first + 1]
    return [(int(row[-2]), int(row[-1])) for row in rows]


def run(core: Core, lengths: Lengths, seed: int) -> dict[str, Any]:
    """Run all requests at once and measure. `decode_step_s`: after the last prompt, as long as all of them run."""
    rng = random.Random(seed)
    start = time.perf_counter()
    for index, (prompt, most) in enumerate(lengths):
        tokens = [rng.randrange(1, 128000) for _ in range(prompt)]
        core.add(Add(f"{seed}-{index}", tokens, SamplingParams(max_tokens=most, temperature=0.0, ignore_eos=True)))
    poller = zmq.Poller()
    poller.register(core._executor.wait_handle(), zmq.POLLIN)
    generated: dict[str, int] = {}
    finished = 0
    first_end = all_started = 0.0
    tokens_then = tokens_at_end = total = 0
    while not core.is_idle:
        outputs = core.turn()
        now = time.perf_counter()
        for output in outputs:
            generated[output.id] = generated.get(output.id, 0) + len(output.tokens)
            total += len(output.tokens)
            if output.finish_reason is not None:
                finished += 1
                if finished == 1:
                    first_end, tokens_at_end = now, total
        if not all_started and len(generated) == len(lengths):
            all_started, tokens_then = now, total
        if not core.is_idle:
            poller.poll(1000)
    seconds = time.perf_counter() - start
    prompts, outputs_ = (sum(column) for column in zip(*lengths, strict=True))
    result: dict[str, Any] = {
        "requests": len(lengths),
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(lengths) / seconds, 3),
        "prompt_tokens_per_s": round(prompts / seconds, 1),
        "output_tokens_per_s": round(outputs_ / seconds, 1),
        "last_first_token_s": round(all_started - start, 3),
    }
    if first_end > all_started and tokens_at_end > tokens_then:
        steps = (tokens_at_end - tokens_then) / len(lengths)
        result["decode_step_s"] = round((first_end - all_started) / steps, 5)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--workload", type=parse_workload, action="append", default=[], metavar="NxPROMPT:OUTPUT")
    parser.add_argument("--lengths", type=Path, action="append", default=[], help="CSV of lengths")
    parser.add_argument("--first", type=int, default=800, help="rows of each CSV (default: 800)")
    parser.add_argument("--repeat", type=int, default=1)
    arguments, rest = parser.parse_known_args()
    names = [flag.removeprefix("--").replace("-", "_") for flag in rest[::2]]
    options: dict[str, Any] = {
        name: int(value) if value.lstrip("-").isdigit() else value
        for name, value in zip(names, rest[1::2], strict=True)
    }
    workloads = arguments.workload + [read_lengths(path, arguments.first) for path in arguments.lengths]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(LLAMA3 | SHAPES[arguments.shape]))
        config = EngineConfig(model=folder, load_format="dummy", max_queued_requests=1 << 20, **options)
        began = time.perf_counter()
        executor = make_executor(config, lambda line: print(line, file=sys.stderr))
        try:
            core = Core(config, executor)
            print(f"ready after {time.perf_counter() - began:.1f} s", file=sys.stderr)
            run(core, [(16, 4)] * 4, seed=999)
            for workload in workloads:
                for repeat in range(arguments.repeat):
                    result = run(core, workload, seed=repeat)
                    print(json.dumps({"shape": arguments.shape, "plan": str(config.plan), **result}), flush=True)
        finally:
            executor.close()


if __name__ == "__main__":
    main()
