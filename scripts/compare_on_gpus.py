"""Layouts against one another on this host's GPUs, at real lengths: the tables of docs/performance.md.

    python scripts/compare_on_gpus.py OUT ROW ... [--systems P4->T4,T4] [--workloads 800xFILE,...]
                                      [--within SECONDS] [--options "..."]

A row is a model on links of one kind; its systems are compared on one machine. A system is an engine that starts once
and runs the row's workloads, whose figures go to OUT/ROW-SYSTEM.N.json beside its log. What OUT holds is not run again,
so a run that was cut off goes on; the table is made of all that is there. Weights and prompts are random.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from seesaw.engine.bench.tables import aligned
from seesaw.engine.bench.workload import parse_workload

ROOT = Path(__file__).parents[1]
LENGTHS = "configs/lengths"
WARM_UP = "4x16:4"  # what only an engine's first steps do is not measured
LEAST_START_S = 60.0  # less time than this left: no engine is started
NAMED_IDLE_SHARE = 0.01


@dataclass(frozen=True)
class Reach:
    """A figure that a system of a row is to have at least."""

    system: str
    workload: str
    figure: str  # requests_per_second, input_tokens_per_second or output_tokens_per_second
    at_least: float


@dataclass(frozen=True)
class Row:
    """Systems that are compared, the first one with the others."""

    options: tuple[str, ...]  # of `seesaw bench offline`
    systems: tuple[
        str, ...
    ]  # in order of importance: PREFILL[->DECODE[->TAIL]][:POLICY], `+resident` or `+reload` behind
    workloads: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    reaches: tuple[Reach, ...] = ()


def _lengths(num_requests: int, name: str) -> str:
    return f"{num_requests}x{LENGTHS}/{name}.csv"


def _slow_links(channels: int) -> dict[str, str]:
    """NCCL with so few channels has the rate of a PCIe host's links. Goes with `BY_NCCL`."""
    return {"NCCL_MIN_NCHANNELS": "1", "NCCL_MAX_NCHANNELS": str(channels)}


BY_NCCL = ("--custom-all-reduce", "off")
STEPS = ("--block-size", "32", "--max-num-seqs", "512", "--max-num-batched-tokens", "8192")
OF_34B = ("--model", "configs/models/codellama-34b", *STEPS, "--host-kv-bytes", "64GiB", "--kv-cache-memory-bytes")
OF_70B = ("configs/llama3-70b-4xh100.json",)
OF_TWO = ("P2->T2", "T2", "P2")
OF_FOUR = ("P4->T4", "T4", "P4", "P4->T2P2->T4", "P4->T2P2", "T2P2")
LOADS = (_lengths(1000, "sharegpt"), _lengths(150, "arxiv"))
LOADS_OF_70B = (_lengths(800, "sharegpt"), _lengths(150, "arxiv"))
STEADY = ("96x2048:1", "512x32:256")

ROWS = {
    # Two GPUs.
    "c2": Row((*OF_34B, "6GiB", *BY_NCCL), OF_TWO, LOADS, _slow_links(2)),
    "c4": Row((*OF_34B, "6GiB", *BY_NCCL), OF_TWO, LOADS, _slow_links(4)),
    "nvlink": Row((*OF_34B, "6GiB"), OF_TWO, (_lengths(300, "sharegpt"), _lengths(80, "arxiv"), "64x2048:1")),
    # Prompts that begin alike, with more prefixes than a device's pool holds.
    "prefix-c2": Row((*OF_34B, "6GiB", *BY_NCCL), OF_TWO, ("400x1500+50:64@80",), _slow_links(2)),
    # The artifact's experiment: pools as large as 22 GiB cards leave beside the weights, and its steps.
    "seed-c4": Row(
        (
            *("configs/llama2-7b-2xl4.json", "--num-device-blocks", "0", "--kv-cache-memory-bytes", "13GiB"),
            *("--num-host-blocks", "0", "--host-kv-bytes", "64GiB", *BY_NCCL),
        ),
        OF_TWO,
        LOADS,
        _slow_links(4),
    ),
    # Four GPUs.
    "70b-c2": Row((*OF_70B, *BY_NCCL), OF_FOUR, LOADS_OF_70B, _slow_links(2)),
    "70b-c4": Row((*OF_70B, *BY_NCCL), OF_FOUR, LOADS_OF_70B, _slow_links(4)),
    "70b-nvlink": Row(
        OF_70B,
        OF_FOUR,
        (*LOADS_OF_70B, *STEADY, _lengths(2000, "sharegpt"), _lengths(500, "arxiv")),
        reaches=(
            Reach("P4", "96x2048:1", "input_tokens_per_second", 17_500),
            Reach("T4", "96x2048:1", "input_tokens_per_second", 15_000),
            Reach("T4", "512x32:256", "output_tokens_per_second", 11_000),
            Reach("P4->T4", _lengths(2000, "sharegpt"), "requests_per_second", 27),
            Reach("P4->T4", _lengths(500, "arxiv"), "requests_per_second", 3.5),
        ),
    ),
    "70b-no-p2p": Row(
        (*OF_70B, *BY_NCCL),
        OF_FOUR,
        (*STEADY, *LOADS_OF_70B),
        {"NCCL_P2P_DISABLE": "1"},
        (Reach("P4", "512x32:256", "output_tokens_per_second", 8_500),),
    ),
    "70b-fp8": Row(
        (*OF_70B, "--quantization", "fp8", "--kv-cache-dtype", "fp8"),
        ("P4->T4", "T4", "D2T2"),
        (_lengths(2000, "sharegpt"), _lengths(500, "arxiv")),
    ),
    # As 34B has it on cards of 22 GiB, whose weights leave 3 GiB.
    "34b-c4": Row(
        (*OF_34B, "3GiB", *BY_NCCL), OF_FOUR, (_lengths(1000, "sharegpt"), _lengths(300, "arxiv")), _slow_links(4)
    ),
}


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = {name: _narrowed(ROWS[name], args) for name in args.rows}
    deadline = time.monotonic() + args.within
    for name, row in rows.items():
        for system in row.systems:
            _measure(args.out, name, row, system, shlex.split(args.options), deadline)
    for name, row in rows.items():
        print("\n".join(table(name, row, {system: _read(args.out, name, system) for system in row.systems})))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder of the figures and logs")
    parser.add_argument("rows", metavar="ROW", nargs="+", choices=ROWS, help=", ".join(ROWS))
    parser.add_argument("--systems", default="", help="instead of the row's, the first one compared with the others")
    parser.add_argument("--workloads", default="", help="instead of the row's")
    parser.add_argument("--options", default="", help="more flags for `seesaw bench offline`")
    parser.add_argument(
        "--within", type=float, default=float("inf"), metavar="SECONDS", help="after so long, end the engine that runs"
    )
    return parser


def _narrowed(row: Row, args: argparse.Namespace) -> Row:
    if args.systems:
        row = replace(row, systems=tuple(args.systems.split(",")))
    if args.workloads:
        row = replace(row, workloads=tuple(args.workloads.split(",")))
    return row


def _measure(out: Path, name: str, row: Row, system: str, options: Sequence[str], deadline: float) -> None:
    """Run what OUT lacks of a system, if there is time."""
    missing = [load for load in row.workloads if parse_workload(load).name not in _read(out, name, system)]
    left_s = deadline - time.monotonic()
    if not missing:
        return
    if left_s < LEAST_START_S:
        print(f"== {name} {system}: no time left", flush=True)
        return
    print(f"== {name} {system} {time.strftime('%H:%M:%S')}", flush=True)
    stem = _stem(name, system)
    path = out / f"{stem}.{len(_files(out, stem))}.json"
    command = [sys.executable, "-m", "seesaw.server.cli", "bench", "offline", *row.options]
    command += ["--dummy-weights", "--max-model-len", "4096", *_layouts(system)]
    for load in (WARM_UP, *missing):
        command += ["--workload", load]
    command += [*options, "--output-json", str(path.resolve())]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    env = os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"} | dict(row.environment)
    with path.with_suffix(".log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            code = child.wait(None if left_s == float("inf") else left_s)
        except subprocess.TimeoutExpired:
            child.terminate()  # ends its workers, and keeps what is measured
            code = child.wait()
    if code:
        last = path.with_suffix(".log").read_text().splitlines()[-5:]
        print("\n".join(["", *last, f"{system} ended with exit code {code}"]), flush=True)


def _layouts(system: str) -> list[str]:
    """Flags of a system as `Row.systems` names it."""
    system, _, weights = system.partition("+")
    plan, _, policy = system.partition(":")
    layouts = plan.split("->")
    flags = ["--prefill", layouts[0], "--decode", layouts[1] if len(layouts) > 1 else layouts[0]]
    if len(layouts) > 2:
        flags += ["--tail", layouts[2]]
    return flags + ["--policy", policy] * bool(policy) + ["--weights", weights] * bool(weights)


def _stem(name: str, system: str) -> str:
    return f"{name}-{system.replace('->', 'to').replace(':', '-')}"


def _files(out: Path, stem: str) -> list[Path]:
    return sorted(out.glob(f"{stem}.[0-9]*.json"))


def _read(out: Path, name: str, system: str) -> dict[str, dict[str, Any]]:
    """A system's figures, as `bench offline` saves them, by the file name or text of their workload."""
    found = {}
    for path in _files(out, _stem(name, system)):
        for load in json.loads(path.read_text())["workloads"]:
            found[load["workload"]] = load["systems"][0]
    return found


def table(name: str, row: Row, found: Mapping[str, Mapping[str, dict[str, Any]]]) -> list[str]:
    """Each workload's systems: rates, what one is of the best static one, reaches, and idle time by cause."""
    lines = []
    for workload in row.workloads:
        load = parse_workload(workload).name
        done = {system: loads[load] for system, loads in found.items() if load in loads}
        if not done:
            continue
        static = [f["requests_per_second"] for system, f in done.items() if "->" not in system]
        cells = [["", "req/s", "in tok/s", "out tok/s", "of the best static", "reach", "transitions", "idle"]]
        for system, f in done.items():
            rates = [f["requests_per_second"], f["input_tokens_per_second"], f["output_tokens_per_second"]]
            share = f"{rates[0] / max(static):.3f}" if static else ""
            met = [_reached(reach, f) for reach in row.reaches if (reach.system, reach.workload) == (system, workload)]
            changes = ", ".join(f"{n} x {change}" for change, n in f["transitions"].items())
            cells.append([system, *(f"{rate:,.2f}" for rate in rates), share, ", ".join(met), changes, _idle(f)])
        lines += [f"{name}  {load}", *(f"  {line}".rstrip() for line in aligned(cells))]
    return lines or [f"{name}: nothing measured"]


def _reached(reach: Reach, figures: Mapping[str, Any]) -> str:
    return f"{reach.at_least:,g}: {'yes' if figures[reach.figure] >= reach.at_least else 'no'}"


def _idle(figures: Mapping[str, Any]) -> str:
    """Causes of idle time, and parts of transitions, that took a share of the run worth a name."""
    shares = {f"idle for {cause}": seconds for cause, seconds in figures["idle_seconds"].items()}
    shares |= {f"in {part}": seconds for part, seconds in figures["transition_seconds"].items()}
    total_s = figures["total_s"]
    return ", ".join(f"{name} {s / total_s:.1%}" for name, s in shares.items() if s > NAMED_IDLE_SHARE * total_s)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
