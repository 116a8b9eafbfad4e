"""`seesaw bench serve`, also `python -m seesaw.clients.load_test`: load an OpenAI-compatible server and measure it.

Flags, printed table and saved JSON are those of `vllm bench serve`, so that scripts and results of the field fit.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from seesaw.clients import arguments
from seesaw.clients.argument_types import check_header
from seesaw.clients.arrivals import arrivals_s
from seesaw.clients.driver import drive
from seesaw.clients.errors import ClientError
from seesaw.clients.figures import figures
from seesaw.clients.progress import Progress
from seesaw.clients.record import Record, to_columns
from seesaw.clients.results import short_name
from seesaw.clients.streaming import CompletionClient, make_session
from seesaw.clients.summary import summary
from seesaw.clients.tokenizers import count_tokens, load_tokenizer
from seesaw.clients.workloads import (
    DEFAULT_VOCAB,
    Workload,
    as_text,
    csv_workload,
    prefix_repetition_workload,
    random_workload,
    sharegpt_workload,
    trace_workload,
)

READY_POLL_S = 0.5
# What a server says of the client's key, of the model, of its load and of a prompt's length.
_OTHER_REFUSAL = re.compile(r"HTTP (401|403|404|429|503)\b|.*\bcontext\b", re.DOTALL)


def main(argv: Sequence[str] | None = None, prog: str = "python -m seesaw.clients.load_test") -> int:
    """Exit code: 0 if any request completed, 1 if none did, 2 for what the user can fix."""
    try:
        args = arguments.parse(argv, prog)
        result = asyncio.run(run(args))
    except ClientError as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    return 0 if result["completed"] else 1


def _may_not_take_ids(records: Sequence[Record]) -> bool:
    """Whether token ids may be what a server refuses: not if it says no to the client, the model or the length."""
    return any(record.error.startswith("HTTP") and not _OTHER_REFUSAL.match(record.error) for record in records)


async def run(args: argparse.Namespace) -> dict[str, Any]:
    """One load test; prints the table, saves and returns the result. Raises ClientError.

    If it is cancelled, the requests that had ended are a result too, which says that it was interrupted.
    """
    headers = request_headers(args)
    model, checkpoint = await find_model(args, headers)
    description = describe(args, model)
    path = result_path(args, model, description["date"]) if args.save_result else None
    if path is not None:
        check_writable(path)
    tokenizer = find_tokenizer(args, checkpoint)
    workload = make_workload(args, tokenizer)
    schedule_s = workload.arrivals_s if args.self_timed else None
    if schedule_s is None:
        schedule_s = arrivals_s(args.num_prompts, args.request_rate, args.burstiness, args.ramp_up, args.seed)
    client = CompletionClient(
        args.base_url,
        args.endpoint,
        model=args.served_model_name or model,
        headers=headers,
        extra_body=request_body(args),
        verify_tls=not args.insecure,
    )
    ended: list[Record] = []

    def publish(start_s: float, records: Sequence[Record], description: dict[str, Any]) -> dict[str, Any]:
        """Print the table of a run that began at `start_s`, save its result if asked to, and return it."""
        counted = records if tokenizer is None else count_tokens(records, tokenizer)
        result = description | figures(counted, start_s, args.metric_percentiles, args.goodput)
        result["start_time"] = start_s
        if path is not None:  # before anything is printed: whoever reads that may be gone
            detail = to_columns(counted) if args.save_detailed else {}
            path.write_text(json.dumps(result | detail, allow_nan=False))
        print(summary(result, counted, args.percentile_metrics, args.metric_percentiles))
        if path is not None:
            print(f"saved {path}")
        if args.tokenize_prompt and not result["completed"] and _may_not_take_ids(records):
            hint = "if it takes no token ids, send text: --no-tokenize-prompt --tokenizer NAME"
            print(f"the server refused all prompts; {hint}", file=sys.stderr)
        return result

    async with client:
        if args.num_warmups:
            warmups = [workload.requests[0]] * args.num_warmups
            await drive(client, warmups, [time.monotonic()] * args.num_warmups, args.max_concurrency)
        gc.collect()
        gc.freeze()  # the prompts need no scanning while the clock runs
        start_s = time.monotonic()
        due_s = [start_s + arrival_s for arrival_s in schedule_s]
        try:
            with Progress(args.num_prompts, disable=args.disable_tqdm) as progress:

                def on_done(record: Record) -> None:
                    ended.append(record)
                    progress.advance(record)

                records = await drive(client, workload.requests, due_s, args.max_concurrency, on_done)
        except asyncio.CancelledError:  # Ctrl-C
            publish(start_s, ended, description | {"interrupted": True})
            raise
    return publish(start_s, records, description)


def find_tokenizer(args: argparse.Namespace, checkpoint: str) -> Any:
    """The tokenizer named; the `checkpoint`'s where prompts are text, which need one; else None. Raises ClientError."""
    if args.tokenizer:
        return load_tokenizer(args.tokenizer)
    return None if args.tokenize_prompt else load_tokenizer(checkpoint)


def make_workload(args: argparse.Namespace, tokenizer: Any) -> Workload:
    """The requests that the flags describe. Raises ClientError."""
    if args.dataset_name == "sharegpt":
        return sharegpt_workload(args.dataset_path, tokenizer, args.num_prompts, args.seed, args.sharegpt_output_len)
    workload = make_random(args, DEFAULT_VOCAB if tokenizer is None else tokenizer.vocab_size)
    return workload if args.tokenize_prompt else as_text(workload, tokenizer, args.seed)


def make_random(args: argparse.Namespace, vocab_size: int) -> Workload:
    """Those of random token ids. Raises ClientError."""
    num, seed = args.num_prompts, args.seed
    match args.dataset_name:
        case "csv":
            return csv_workload(args.dataset_path, num, seed, vocab_size)
        case "timed_trace":
            return trace_workload(args.dataset_path, num, seed, vocab_size)
        case "prefix_repetition":
            return prefix_repetition_workload(
                num,
                args.prefix_repetition_prefix_len,
                args.prefix_repetition_suffix_len,
                args.prefix_repetition_num_prefixes,
                args.prefix_repetition_output_len,
                seed,
                vocab_size,
            )
        case name:
            ratio = args.random_range_ratio if name == "random" else 0.0
            return random_workload(num, args.random_input_len, args.random_output_len, ratio, seed, vocab_size)


async def find_model(args: argparse.Namespace, headers: dict[str, str]) -> tuple[str, str]:
    """The model named, or the first that the server serves; and the checkpoint that the server says it is, if it
    does. Waits for the server if asked to. Raises ClientError."""
    if args.model and not args.ready_check_timeout_sec:
        return str(args.model), str(args.model)
    url = f"{args.base_url}/v1/models"
    deadline_s = time.monotonic() + args.ready_check_timeout_sec
    async with make_session(headers, not args.insecure) as session:
        while True:
            try:
                async with session.get(url) as response:
                    response.raise_for_status()
                    served = msgspec.json.decode(await response.read(), type=_Models).data[0]
                    return (args.model, args.model) if args.model else (served.id, served.root or served.id)
            except (aiohttp.ClientError, OSError, ValueError, msgspec.DecodeError, IndexError, RecursionError) as error:
                if time.monotonic() >= deadline_s:
                    raise ClientError(
                        f"{url} gives no model ({type(error).__name__}: {error}): start the server, name another "
                        "with --base-url, or the model with --model"
                    ) from None
            await asyncio.sleep(READY_POLL_S)


class _Model(msgspec.Struct):
    id: str
    root: str | None = None


class _Models(msgspec.Struct):
    data: list[_Model]


def request_headers(args: argparse.Namespace) -> dict[str, str]:
    """Raises ClientError."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        return dict(args.header)
    check_header("Authorization", f"Bearer {key}", "OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} | args.header


def request_body(args: argparse.Namespace) -> dict[str, Any]:
    """The keys that every request carries beside its prompt and length."""
    given = {name: getattr(args, name) for name in arguments.SAMPLING}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if args.ignore_eos:
        body["ignore_eos"] = True
    return body | args.extra_body


def describe(args: argparse.Namespace, model: str) -> dict[str, Any]:
    """What a result says of how it was made. Keys as the field's."""
    described: dict[str, Any] = {
        "date": datetime.now().strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": args.backend,
        "backend": args.backend,
        "label": args.label,
        "model_id": model,
        "tokenizer_id": args.tokenizer or (None if args.tokenize_prompt else model),
        "dataset_name": args.dataset_name,
        "num_prompts": args.num_prompts,
        **args.provenance,
    }
    described |= args.metadata
    described["request_rate"] = "inf" if math.isinf(args.request_rate) else args.request_rate
    described["burstiness"] = "inf" if math.isinf(args.burstiness) else args.burstiness
    described["max_concurrency"] = args.max_concurrency
    if args.ramp_up is not None:
        described["ramp_up_strategy"] = args.ramp_up.strategy
        described["ramp_up_start_rps"] = args.ramp_up.start_rps
        described["ramp_up_end_rps"] = args.ramp_up.end_rps
    return described


def result_path(args: argparse.Namespace, model: str, date: str) -> Path:
    """Where the result goes: as named, or by label, rate, concurrency, model and date."""
    rate = f"{args.request_rate}qps"
    if args.ramp_up is not None:
        rate = f"ramp-up-{args.ramp_up.strategy}-{args.ramp_up.start_rps:g}qps-{args.ramp_up.end_rps:g}qps"
    limit = "" if args.max_concurrency is None else f"-concurrency{args.max_concurrency}"
    name = f"{args.label or args.backend}-{rate}{limit}-{short_name(model)}-{date}.json"
    name = re.sub(r"[^\w.+]+", "-", name)  # a label may be P2->T2, which a shell would take for a redirection
    return Path(args.result_dir or ".") / (args.result_filename or name)


def check_writable(path: Path) -> None:
    """Raise ClientError if a result cannot be written there, before there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a"):
            pass
        if is_new:
            path.unlink()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ClientError(
            f"cannot write {path} ({reason}): name another with --result-dir, --result-filename"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
