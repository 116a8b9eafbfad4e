"""What the order of a batch's rows is worth: how long jobs take on a simulated host, and what they find in its cache.

    python scripts/batch_order.py [--num-rows N] [--max-num-seqs N]

Each job runs in the order of its file and as `server.batches.lookahead` orders it, which hears of outputs as they end
("learned") or knows their lengths from the start ("known"). Times are simulated seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from seesaw.engine.bench.workload import Job, Workload, arrange, prefix_repetition, prompts, read_lengths
from seesaw.engine.core import Core
from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add
from seesaw.server.batches.jobs import ROWS_PER_SEQUENCE
from seesaw.server.batches.lengths import Lengths
from seesaw.server.batches.lookahead import Lookahead, Planned
from seesaw.server.batches.rows import Request, Row

CONFIGS = Path(__file__).parents[1] / "configs"
MODEL, HOST = "llama3-8b", "2xh100-nvlink"
MOST_TOKENS = 2048  # of an output, if its row says no better
SYSTEMS = ("file", "learned", "known")


@dataclass(frozen=True)
class Run:
    total_s: float
    tail_s: float  # in which fewer rows were left than may decode at once
    cached_share: float  # of the prompts' tokens


def make_config(max_num_seqs: int, kv_cache_bytes: int = 20 << 30) -> EngineConfig:
    return EngineConfig(
        executor="simulated",
        shape=str(CONFIGS / "models" / MODEL),
        host_profile=str(CONFIGS / "hosts" / f"{HOST}.json"),
        prefill="T2",
        max_model_len=8192,
        kv_cache_memory_bytes=kv_cache_bytes,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=8192,
        max_queued_requests=1 << 20,
    )


class InOrder:
    """Rows as the file has them."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._rows = rows

    def next(self) -> int | None:
        row = next(self._rows, None)
        return None if row is None else row.number

    def end(self, number: int, output_tokens: int) -> None:
        """A row has ended."""


class Ahead:
    """Rows as the feeder sends them."""

    def __init__(self, rows: Iterator[Row]) -> None:
        self._lengths = Lengths()
        self._lookahead = Lookahead(rows, self._lengths)
        self._taken: deque[Planned] = deque()
        self._sent: dict[int, Planned] = {}

    def next(self) -> int | None:
        self._taken = self._taken or deque(self._lookahead.take())
        if not self._taken:
            return None
        planned = self._taken.popleft()
        self._sent[planned.row.number] = planned
        return planned.row.number

    def end(self, number: int, output_tokens: int) -> None:
        """A row has ended."""
        answer = {"usage": {"completion_tokens": output_tokens}, "choices": [{}]}
        self._lengths.learn(self._sent.pop(number).asked, json.dumps(answer).encode())


def rows_of(jobs: Sequence[Job], token_ids: Sequence[list[int]], is_known: bool) -> Iterator[Row]:
    for number, (job, ids) in enumerate(zip(jobs, token_ids, strict=True)):
        body = json.dumps({"prompt": ids, "max_tokens": job.output_tokens if is_known else MOST_TOKENS}).encode()
        yield Row(number, Request(str(number), "POST", "/v1/completions", msgspec.Raw(body)), len(body))


def run(config: EngineConfig, jobs: Sequence[Job], system: str) -> Run:
    """A job to its end, with as many rows in the engine as the feeder has there."""
    token_ids = prompts(jobs, 32_000, seed=0)
    rows = rows_of(jobs, token_ids, is_known=system == "known")
    order = InOrder(rows) if system == "file" else Ahead(rows)
    executor = SimulatedExecutor(config)
    core = Core(config, executor)
    num_sent = num_ended = 0
    full_s = 0.0
    while num_ended < len(jobs):
        while num_sent - num_ended < ROWS_PER_SEQUENCE * config.max_num_seqs:
            number = order.next()
            if number is None:
                break
            num_sent += 1
            params = SamplingParams(max_tokens=jobs[number].output_tokens, temperature=0.0, ignore_eos=True)
            core.add(Add(str(number), token_ids[number], params))
        for output in core.turn():
            if output.finish_reason is not None:
                num_ended += 1
                order.end(int(output.id), jobs[int(output.id)].output_tokens)
        if len(jobs) - num_ended >= config.max_num_seqs:
            full_s = executor.now()
    stats = core.stats()
    num_found = sum(stats.prefix_cache_hits.values())
    return Run(executor.now(), executor.now() - full_s, num_found / max(1, stats.prefix_cache_queries))


def workloads(num_rows: int) -> Iterator[Workload]:
    for name in ("sharegpt", "arxiv"):
        yield Workload(name, read_lengths(CONFIGS / "lengths" / f"{name}.csv", num_rows))
    rng = random.Random(0)
    for num_prefixes in (-(-num_rows // 8), -(-num_rows // 64)):
        shared = prefix_repetition(num_rows, 2000, 100, 1, num_prefixes)
        jobs = [Job(job.prompt_tokens, rng.randint(8, 200), prefix=job.prefix) for job in shared.jobs]
        yield Workload(f"{num_prefixes} prefixes of 2000, shuffled", jobs)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--num-rows", type=int, default=2000, help="of each job (default: 2000)")
    parser.add_argument("--max-num-seqs", type=int, default=256, help="that decode at once (default: 256)")
    parser.add_argument("--shuffles", type=int, default=3, help="orders of each file (default: 3)")
    args = parser.parse_args(argv)
    config = make_config(args.max_num_seqs)
    for workload in workloads(args.num_rows):
        for seed in range(args.shuffles):
            jobs = arrange(workload.jobs, "shuffle", seed)
            runs = {system: run(config, jobs, system) for system in SYSTEMS}
            times = ", ".join(
                f"{system} {each.total_s:.2f} s (tail {each.tail_s:.2f} s, {each.cached_share:.1%} found)"
                for system, each in runs.items()
            )
            print(f"{workload.name}: {times}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
