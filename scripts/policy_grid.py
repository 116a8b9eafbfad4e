"""Policies against one another on simulated hosts: the default, the paper's, and each layout of the plan alone.

    python scripts/policy_grid.py [--every N] [--num-requests N] [--only TEXT] [--output-json FILE]

A cell is a host of `configs/hosts/`, a model, a plan, a workload and how its requests arrive. All systems of a cell get
the same requests and step times; nothing is measured here but schedules. Times in the JSON are simulated seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, geometric_mean, median
from typing import Any

from seesaw.engine.bench.workload import Job, read_lengths
from seesaw.engine.core import Core
from seesaw.engine.cost.estimate import weight_bytes
from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add

CONFIGS = Path(__file__).parents[1] / "configs"
LOADS = (0.1, 0.5, 0.8, 1.2)  # Poisson arrivals, as shares of what the best layout alone can do offline
WORKSPACE_BYTES = 3 << 30
LEAST_POOL_BYTES = 1 << 30

# Host, model, plan: those of the paper and of configs/, and the same on links that favour neither layout.
HOSTS_AND_PLANS = [
    ("4xa10", "llama3-15b", "P4", "T4"),
    ("4xa10", "llama3-8b", "P4", "T2P2"),
    ("4xa10", "codellama-34b", "P4", "T4"),
    ("8xa10", "codellama-34b", "D2P4", "D2T4"),
    ("8xa10", "llama2-70b", "P8", "T4P2"),
    ("2xl4", "llama2-7b", "P2", "T2"),
    ("8xl4", "codellama-34b", "P8", "T4P2"),
    ("8xl4", "llama2-70b", "P8", "T4P2"),
    ("8xa100-pcie", "llama2-70b", "P8", "T4P2"),
    ("8xa100-nvlink", "llama3-70b", "P8", "T8"),
    ("2xh100-slow-links", "codellama-34b", "P2", "T2"),
    ("2xh100-nvlink", "codellama-34b", "P2", "T2"),
    ("4xh100-nvlink", "llama3-70b", "P4", "T4"),
    ("4xh100-nvlink", "llama3-70b", "P4", "T2P2"),
]
WORKLOADS = ("sharegpt", "arxiv", "long", "mixed")


@dataclass(frozen=True)
class Cell:
    """One comparison. `load` 0: all requests at once."""

    host: str
    model: str
    prefill: str
    decode: str
    workload: str
    load: float

    def __str__(self) -> str:
        arrivals = f"load {self.load:g}" if self.load else "offline"
        return f"{self.host} {self.model} {self.prefill}->{self.decode} {self.workload} {arrivals}"


def cells() -> Iterator[Cell]:
    for host, model, prefill, decode in HOSTS_AND_PLANS:
        for workload in WORKLOADS:
            for load in (0.0, *LOADS):
                yield Cell(host, model, prefill, decode, workload, load)


@dataclass(frozen=True)
class Run:
    """One system in one cell, in simulated seconds."""

    total_s: float
    mean_latency_s: float
    mean_first_token_s: float
    median_first_token_s: float
    largest_gap_s: float  # between two tokens of one request
    transitions: int


def workload(name: str, count: int, seed: int = 0) -> list[Job]:
    """`count` requests; `long` has prompts of 3,000 tokens and outputs of 100, `mixed` some of everything."""
    rng = random.Random(f"{name} {seed}")
    lengths = CONFIGS / "lengths"
    match name:
        case "long":
            return [Job(rng.randint(2500, 3500), rng.randint(50, 150)) for _ in range(count)]
        case "mixed":
            parts = [workload(part, count, seed) for part in ("sharegpt", "arxiv", "long")]
            return [rng.choice(jobs) for jobs in zip(*parts, strict=True)]
        case _:
            return read_lengths(lengths / f"{name}.csv", count)


def config_for(cell: Cell, shape: ModelShape) -> EngineConfig | None:
    """None if the model leaves no room for KV on this host."""
    path = CONFIGS / "hosts" / f"{cell.host}.json"
    profile = json.loads(path.read_text())
    pool_bytes = int(profile["memory_bytes"] - WORKSPACE_BYTES - weight_bytes(shape) / profile["gpus"])
    if pool_bytes < LEAST_POOL_BYTES:
        return None
    return EngineConfig(
        executor="simulated",
        shape=str(CONFIGS / "models" / cell.model),
        host_profile=str(path),
        prefill=cell.prefill,
        decode=cell.decode,
        max_model_len=4096,
        kv_cache_memory_bytes=pool_bytes,
        host_kv_bytes=256 << 30,
        weights="reload",
        block_size=32,
        max_num_seqs=512,
        max_num_batched_tokens=4096,
        max_queued_requests=1 << 20,
    )


def run(config: EngineConfig, jobs: Sequence[Job], arrivals_s: Sequence[float]) -> Run:
    """All requests to their ends, each handed over at its time."""
    executor = SimulatedExecutor(config)
    core = Core(config, executor)
    waiting = list(zip(arrivals_s, range(len(jobs)), strict=True))[::-1]
    first_s: dict[str, float] = {}
    last_s: dict[str, float] = {}
    finished_s: dict[str, float] = {}
    largest_gap_s = 0.0
    while waiting or not core.is_idle:
        if core.is_idle and waiting:
            executor.sleep_until(waiting[-1][0])
        while waiting and waiting[-1][0] <= executor.now():
            _, index = waiting.pop()
            job = jobs[index]
            params = SamplingParams(max_tokens=job.output_tokens, temperature=0.0, ignore_eos=True)
            core.add(Add(str(index), [index + 1] + [1] * (job.prompt_tokens - 1), params))
        for output in core.turn():
            now = executor.now()
            first_s.setdefault(output.id, now)
            largest_gap_s = max(largest_gap_s, now - last_s.get(output.id, now))
            last_s[output.id] = now
            if output.finish_reason is not None:
                finished_s[output.id] = now
    started_s = {str(index): at for index, at in enumerate(arrivals_s)}
    return Run(
        total_s=max(finished_s.values()),
        mean_latency_s=fmean(finished_s[name] - started_s[name] for name in finished_s),
        mean_first_token_s=fmean(first_s[name] - started_s[name] for name in finished_s),
        median_first_token_s=median(first_s[name] - started_s[name] for name in finished_s),
        largest_gap_s=largest_gap_s,
        transitions=sum(core.stats().transitions.values()),
    )


def run_cell(cell: Cell, num_requests: int) -> dict[str, Run] | None:
    """By system: `cost`, `paper` and the two layouts alone. None if the model does not fit the host."""
    shape = read_shape(CONFIGS / "models" / cell.model)
    config = config_for(cell, shape)
    if config is None:
        return None
    alone = [replace(config, prefill=layout, decode="") for layout in (cell.prefill, cell.decode)]
    jobs = workload(cell.workload, num_requests)
    arrivals_s = [0.0] * num_requests
    if cell.load:
        best_s = min(run(each, jobs, arrivals_s).total_s for each in alone)
        rng = random.Random(str(cell))
        now = 0.0
        for index in range(num_requests):
            now += rng.expovariate(cell.load * num_requests / best_s)
            arrivals_s[index] = now
    systems = {
        "cost": config,
        "paper": replace(config, policy="paper"),
        cell.prefill: alone[0],
        cell.decode: alone[1],
    }
    return {name: run(each, jobs, arrivals_s) for name, each in systems.items()}


def ratios(runs: dict[str, Run]) -> tuple[float, float]:
    """The default policy's throughput over the best layout's alone, and over the paper's policy's."""
    cost_s, paper_s, *alone_s = (each.total_s for each in runs.values())
    return min(alone_s) / cost_s, paper_s / cost_s


def summary(saved: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Of all cells with the same kind of arrivals: throughput, and waiting beside the best layout alone."""
    kinds = {"all at once": (0.0, 0.0), "below capacity": (0.01, 1.0), "above capacity": (1.0, 9.0)}
    for kind, (least, most) in kinds.items():
        cells = [cell for cell in saved if least <= cell["load"] <= most]
        if not cells:
            continue
        yield f"{kind}, {len(cells)} cells"
        for what, bound in (("over_best", 0.98), ("over_paper", 0.99)):
            values = [cell[what] for cell in cells]
            below = sum(value < bound for value in values)
            spread = f"mean {fmean(values):.3f}, least {min(values):.3f}, most {max(values):.3f}"
            yield f"  {what}: {spread}, below {bound}: {below}"
        for what in ("mean_latency_s", "median_first_token_s", "largest_gap_s"):
            factors = [run[what] / best[what] for run, best in map(_cost_and_best, cells) if run[what] and best[what]]
            if factors:
                yield f"  {what} over the best layout's: mean {geometric_mean(factors):.2f}, most {max(factors):.2f}"


def _cost_and_best(cell: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The default policy's run, and that of the layout alone which is soonest done."""
    cost, _, *alone = cell["systems"].values()
    return cost, min(alone, key=lambda run: run["total_s"])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--every", type=int, default=1, help="run only every N-th cell (default: 1)")
    parser.add_argument("--num-requests", type=int, default=200, help="of each cell (default: 200)")
    parser.add_argument("--only", default="", help="run only cells whose names hold this text")
    parser.add_argument("--output-json", type=Path, help="save all times")
    args = parser.parse_args(argv)
    chosen = [cell for cell in cells() if args.only in str(cell)][:: args.every]
    saved: list[dict[str, Any]] = []
    for cell in chosen:
        runs = run_cell(cell, args.num_requests)
        if runs is None:
            continue
        over_best, over_paper = ratios(runs)
        times = ", ".join(f"{name} {each.total_s:.1f} s ({each.transitions})" for name, each in runs.items())
        print(f"{over_best:6.3f} {over_paper:6.3f}  {cell}: {times}", flush=True)
        systems = {name: asdict(each) for name, each in runs.items()}
        saved.append(asdict(cell) | {"over_best": over_best, "over_paper": over_paper, "systems": systems})
        if args.output_json:
            args.output_json.write_text(json.dumps(saved, indent=1) + "\n")
    print("\n".join(summary(saved)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
