"""Host time of the scheduler: a step of many running sequences while very many requests wait.

    python scripts/bench_scheduler.py [--running 1024] [--waiting 100000] [--steps 200] [--plan T1,P2:T2]

One core, no devices: what `Scheduler.schedule` and `Scheduler.update` take, without the simulated host's own time.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Sequence

from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.scheduler import Scheduler
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import Forward
from seesaw.engine.wire.messages import Add

WINDOWS = 5


def measure(plan: str, running: int, waiting: int, steps: int) -> float:
    """Milliseconds a step once all `running` decode, in the fastest window: only others' work slows one."""
    prefill, _, decode = plan.partition(":")
    config = EngineConfig(
        executor="simulated",
        prefill=prefill,
        decode=decode,
        max_num_seqs=running,
        max_num_batched_tokens=8192,
        num_device_blocks=running * 100,
        num_host_blocks=0 if not decode else 4000,
        max_queued_requests=1 << 30,
        max_model_len=2048,
    )
    executor = SimulatedExecutor(config)
    scheduler = Scheduler(config, executor.capacity, executor.now())
    params = SamplingParams(max_tokens=1500, temperature=0.0, ignore_eos=True)
    for index in range(running + waiting):
        prompt = [index % 30_000, index // 30_000, *[1] * 30]  # no two begin alike
        scheduler.add(Add(str(index), prompt, params), executor.now())
    decoding = 0
    while decoding < running:
        decoding = max(turn(scheduler, executor)[0], default=0)
    gc.collect()
    gc.freeze()
    windows_s: list[float] = []
    for _ in range(WINDOWS):
        forwards, seconds = 0, 0.0
        while forwards < steps:
            sent, took_s = turn(scheduler, executor)
            forwards, seconds = forwards + len(sent), seconds + took_s
        windows_s.append(seconds / forwards)
    gc.unfreeze()
    return min(windows_s) * 1e3


def turn(scheduler: Scheduler, executor: SimulatedExecutor) -> tuple[list[int], float]:
    """How many sequences decode in each of the steps sent, and the scheduler's own seconds."""
    reports = executor.collect()
    start_s = time.process_time()
    for report in reports:
        scheduler.update(report, executor.now())
    commands = scheduler.schedule(executor.now())
    scheduler.take_outputs()
    seconds = time.process_time() - start_s
    for command in commands:
        executor.submit(command)
    return [len(command.decodes) for command in commands if isinstance(command, Forward)], seconds


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--running", type=int, default=1024, help="sequences that decode (default: 1024)")
    parser.add_argument("--waiting", type=int, default=100_000, help="requests that wait (default: 100000)")
    parser.add_argument("--steps", type=int, default=200, help=f"steps of each of {WINDOWS} windows (default: 200)")
    parser.add_argument("--plan", default="T1,P2:T2", help="plans, prefill:decode (default: T1,P2:T2)")
    args = parser.parse_args(argv)
    for plan in args.plan.split(","):
        ms = measure(plan, args.running, args.waiting, args.steps)
        print(f"{plan.replace(':', '->'):8} {args.running} running, {args.waiting} waiting: {ms:.3f} ms a step")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
