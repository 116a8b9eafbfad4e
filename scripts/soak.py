"""Send ShareGPT conversations to a server and check that every one is answered in full and nothing is left behind.

Without --base-url it starts a server by itself, checks that it also ends well, and says how its processes' memory grew.
What must hold: each stream ends with the number of tokens asked for, or what its schema allows; the server's counters
agree with the clients' sums; when all is answered, or cut off by its client, both block pools are empty. Exits with 1
and says why if anything does not.
Run by `scripts/soak`; arguments after `--` go to the server that it starts.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from fetch_default_model import default_model
from memory_growth import MemoryGrowth
from soak_client import Client, Metrics
from soak_jobs import FORMS, Job, Outcome, discrepancies, make_jobs
from soak_server import start_server

from seesaw.clients.datasets import load_sharegpt
from seesaw.clients.sharegpt import sharegpt
from seesaw.clients.wheels import FetchError
from seesaw.engine.text.tokenizer import SingleTexts, load_tokenizer

EMPTY_WHEN_IDLE = (
    "seesaw:num_requests_running",
    "seesaw:num_requests_waiting",
    "seesaw:num_requests_hosted",
    "seesaw:device_kv_blocks_used",
    "seesaw:host_kv_blocks_used",
)
IDLE_TIMEOUT_S = 60.0
LOOK_EVERY = 50  # requests
SHOWN_DISCREPANCIES = 20


async def run_jobs(
    client: Client, model: str, jobs: list[Job], concurrency: int, memory: MemoryGrowth
) -> list[Outcome]:
    """Run all jobs, `concurrency` at a time, and return their outcomes in order."""
    gate = asyncio.Semaphore(concurrency)
    num_done = 0

    async def run(job: Job) -> Outcome:
        nonlocal num_done
        async with gate:
            outcome = await client.complete(model, job)
        num_done += 1
        if num_done % LOOK_EVERY == 0 or num_done == len(jobs):
            print(f"soak: {num_done} of {len(jobs)} requests", file=sys.stderr)
            memory.look(num_done)
        return outcome

    return await asyncio.gather(*(run(job) for job in jobs))


def metric_discrepancies(jobs: list[Job], outcomes: list[Outcome], before: Metrics, after: Metrics) -> list[str]:
    """Where the server's counters differ from the clients' sums, and what is still in use at the end."""
    found = []
    prompt_tokens = sum(outcome.prompt_tokens for outcome in outcomes)
    counted = after.since(before, "seesaw:prompt_tokens_total")
    if counted != prompt_tokens:
        found.append(f"the server counted {counted:.0f} prompt tokens, the clients {prompt_tokens}")
    completion_tokens = sum(outcome.completion_tokens for outcome in outcomes)
    counted = after.since(before, "seesaw:generation_tokens_total")
    any_cut = any(job.cut_after is not None for job in jobs)  # such a client misses what was on its way
    if counted < completion_tokens or (counted > completion_tokens and not any_cut):
        found.append(f"the server counted {counted:.0f} generated tokens, the clients {completion_tokens}")
    for name in EMPTY_WHEN_IDLE:
        if name not in after.series:
            found.append(f"/metrics has no {name}")
        elif after.total(name):
            found.append(f"{name} is {after.total(name):.0f} when all is done, not 0")
    return found


def summary(jobs: list[Job], memory: MemoryGrowth, before: Metrics, after: Metrics, seconds: float) -> str:
    """The few numbers of a run that a person wants."""
    num_cut = sum(job.cut_after is not None for job in jobs)
    prompt = after.since(before, "seesaw:prompt_tokens_total")
    generated = after.since(before, "seesaw:generation_tokens_total")
    changes = after.by_label(before, "seesaw:transitions_total")
    swapped = after.by_label(before, "seesaw:swap_bytes_total")
    lines = [
        f"requests     {len(jobs)} in {seconds:.1f} s, {num_cut} of them cut by their client",
        f"tokens       {prompt:.0f} prompt, {generated:.0f} generated: {generated / seconds:.1f} generated/s",
        "transitions  " + (", ".join(f"{change} {count:.0f}" for change, count in changes.items()) or "none"),
        "swapped      " + (", ".join(f"{way} {size / 2**20:.1f} MiB" for way, size in swapped.items()) or "nothing"),
    ]
    for process, (megabytes, slope) in zip(memory.processes, memory.slopes(), strict=True):
        lines.append(f"memory       {megabytes:.0f} MB, {slope:+.0f} bytes a request: process {process.pid}")
    return "\n".join(lines)


async def soak(
    base_url: str, tokenizer: Any, args: argparse.Namespace, processes: Sequence[psutil.Process] = ()
) -> list[str]:
    """One run against a server; prints the summary and returns the discrepancies."""
    timeout = aiohttp.ClientTimeout(total=None, sock_read=args.timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 20) as session:
        client = Client(session, base_url)
        model, context = await client.model()
        samples = load_sharegpt(
            args.dataset or sharegpt(),
            tokenizer,
            args.num_requests,
            args.seed,
            max_total_tokens=context,
            max_prompt_tokens=args.max_prompt_tokens,
            max_output_tokens=args.max_output_tokens,
        )
        jobs = make_jobs(samples, args.forms, args.cut, context, args.seed)
        memory = MemoryGrowth(processes)
        before = await client.metrics()
        start = time.monotonic()
        outcomes = await run_jobs(client, model, jobs, args.concurrency, memory)
        seconds = time.monotonic() - start
        found = [
            f"request {i} ({job.form}) {sentence}"
            for i, (job, outcome) in enumerate(zip(jobs, outcomes, strict=True))
            for sentence in discrepancies(job, outcome)
        ]
        try:
            after = await client.idle_metrics(EMPTY_WHEN_IDLE, timeout_s=IDLE_TIMEOUT_S)
        except aiohttp.ClientError as error:
            return [*found, f"the server does not answer any more: {error}"]
    print(summary(jobs, memory, before, after, seconds))
    return found + metric_discrepancies(jobs, outcomes, before, after)


@asynccontextmanager
async def target(args: argparse.Namespace, found: list[str]) -> AsyncIterator[tuple[str, list[psutil.Process]]]:
    """The base URL of the server to load, and the processes of an own one. What goes wrong when that ends is added to
    `found`."""
    if args.base_url:
        yield args.base_url, []
        return
    server = await start_server(args.model or default_model(), args.server_args)
    process = psutil.Process(server.process.pid)
    try:
        yield server.base_url, [process, *process.children(recursive=True)]
    finally:
        found += await server.stop()


async def run(args: argparse.Namespace) -> list[str]:
    tokenizer = SingleTexts(load_tokenizer(args.tokenizer or str(args.model or default_model())))
    found: list[str] = []
    async with target(args, found) as (base_url, processes):
        found += await soak(base_url, tokenizer, args, processes)
    return found


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Load a server and check that nothing is lost.")
    parser.add_argument("--base-url", help="a running server that nobody else uses (default: start one)")
    parser.add_argument("--model", help="checkpoint folder or hub name to serve (default: the default model)")
    parser.add_argument("--tokenizer", help="the served model's tokenizer, or `bytes` (default: the model's)")
    parser.add_argument("--dataset", type=Path, help="a ShareGPT file (default: the fetched one)")
    parser.add_argument("--num-requests", type=int, default=300, help="in each form (default: 300)")
    parser.add_argument(
        "--forms", nargs="+", choices=FORMS, default=["completion"], help="ways to ask (default: completion)"
    )
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--cut", type=int, default=0, metavar="N", help="so many clients hang up mid-stream")
    parser.add_argument("--max-prompt-tokens", type=int, help="pass over longer prompts (default: the context)")
    parser.add_argument("--max-output-tokens", type=int, help="cut longer outputs (default: as the reference)")
    parser.add_argument("--seed", type=int, default=0, help="which conversations, in which order")
    parser.add_argument("--timeout-s", type=float, default=600.0, help="longest silence of a stream")
    parser.add_argument("server_args", nargs="*", metavar="-- FLAG", help="flags of the server that is started")
    args = parser.parse_args(argv)
    if args.cut > (most := args.num_requests * len(args.forms)):
        parser.error(f"--cut {args.cut} is more than the {most} requests")
    if args.server_args and args.base_url:
        parser.error("flags after -- are for a server that is started here: leave out --base-url")
    return args


def main() -> None:
    args = parse_args()
    try:
        found = asyncio.run(run(args))
    except (FetchError, RuntimeError, ValueError, OSError, aiohttp.ClientError) as error:
        sys.exit(f"soak: error: {error}")
    for sentence in found[:SHOWN_DISCREPANCIES]:
        print(f"soak: {sentence}", file=sys.stderr)
    if found:
        sys.exit(f"soak: {len(found)} discrepancies")
    print("soak: every request complete, counters agree, pools empty")


if __name__ == "__main__":
    main()
