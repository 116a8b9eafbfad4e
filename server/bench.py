"""`seesaw bench offline`: run requests through the engine without HTTP, in one plan of layouts or several.

Each engine is started once for all workloads. Joins `clients.datasets` to `engine.bench`; `server.cli` hands over the
arguments.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import get_args

from seesaw.clients.datasets import load_sharegpt
from seesaw.clients.provenance import provenance
from seesaw.clients.sharegpt import sharegpt
from seesaw.clients.wheels import FetchError
from seesaw.engine.bench.bounds import Host
from seesaw.engine.bench.offline import SystemResult, run_workloads
from seesaw.engine.bench.outputs import check_output
from seesaw.engine.bench.tables import compare, describe
from seesaw.engine.bench.workload import (
    Job,
    Order,
    Workload,
    add_workload_flag,
    arrange,
    prefix_repetition,
    read_lengths,
)
from seesaw.engine.cost.profile import read_profile
from seesaw.engine.executor import check_executor
from seesaw.engine.logs import start_log
from seesaw.engine.sizing.fit import check_early
from seesaw.engine.sizing.model import find_shape
from seesaw.engine.text.tokenizer import SingleTexts, Tokenizer, load_tokenizer
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.server.settings import Parser, add_flags, read_configs

DATASETS = ("sharegpt", "csv", "constant", "prefix_repetition")
NUM_REQUESTS = 100
# vLLM's flags of its data set, and their defaults.
PREFIX_REPETITION = {
    "prefix_repetition_prefix_len": 256,
    "prefix_repetition_suffix_len": 256,
    "prefix_repetition_num_prefixes": 10,
    "prefix_repetition_output_len": 128,
}
# The field's filter of ShareGPT: longest prompt, longest prompt with its output.
SHAREGPT_PROMPT_TOKENS, SHAREGPT_TOTAL_TOKENS = 1024, 2048


def main(argv: Sequence[str], prog: str) -> int:
    """Run the benchmark and return the exit code. Raises SeesawError."""
    args = _parse(argv, prog)
    if args.hf_token:
        os.environ["HF_TOKEN"] = args.hf_token
    config = _config(args)
    systems = _systems(config, args.against)
    for system in systems:
        check_early(system)
    check_output(args.output_json)
    start_log("%(asctime)s %(message)s")
    for system in systems if len(systems) > 1 else []:  # a single one says it at its start
        check_executor(system)

    tokenizer = None
    if args.dataset == "sharegpt" or args.print_output:
        tokenizer = load_tokenizer(config.tokenizer or config.model)
    workloads = args.workload or [_dataset(args, config, tokenizer)]
    workloads = [replace(load, jobs=arrange(load.jobs, args.order, config.seed)) for load in workloads]
    host = _host(config, args.limits) if args.limits else None
    results: list[list[SystemResult]] = [[] for _ in workloads]
    for system in systems:
        jobs = [load.jobs for load in workloads]
        runs = run_workloads(system, jobs, hide_output_lengths=args.hide_output_lengths, host=host)
        for load, done, result in zip(workloads, results, runs, strict=True):
            done.append(result)
            print(describe(result, load.name), flush=True)
            if args.output_json:  # after every run: the next may fail, or take long
                report = _report(args, config, workloads, results)
                args.output_json.write_text(json.dumps(report, indent=1) + "\n")
    if tokenizer is not None and args.print_output:
        for index, tokens in enumerate(tokens for done in results for tokens in done[0].outputs):
            print(f"[{index}] {tokenizer.decode(tokens)!r}")
    if len(systems) > 1:
        for load, done in zip(workloads, results, strict=True):
            print(compare(done, load.name))
    return 0


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    args = _parser(prog).parse_args(argv)
    args.provenance = provenance(prog, argv)
    if args.config is not None and not _names_a_file(args.config):
        if args.model is not None:
            raise ConfigError(f"the model is named twice: {args.config} and --model {args.model}")
        args.config, args.model = None, args.config
    if not args.workload:
        args.dataset = args.dataset or "sharegpt"
        args.num_requests = args.num_requests or NUM_REQUESTS
    for name in ("dataset", "dataset_path", "num_requests", "input_len", "output_len", *PREFIX_REPETITION):
        if args.workload and getattr(args, name) is not None:
            raise ConfigError(f"--workload says what to run: leave out --{name.replace('_', '-')}")
        if name in PREFIX_REPETITION and args.dataset != "prefix_repetition" and getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} needs --dataset prefix_repetition")
    return args


def _names_a_file(config_or_model: str) -> bool:
    return config_or_model.endswith(".json") or (os.path.exists(config_or_model) and not os.path.isdir(config_or_model))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description="Run requests through the engine without HTTP.", allow_abbrev=False)
    parser.elsewhere = {"num_prompts": "use --num-requests", "dataset_name": "use --dataset"}
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG|MODEL", help="JSON file with the engine's settings, or as --model"
    )
    add = parser.add_argument_group("benchmark").add_argument
    add_workload_flag(add)
    add("--dataset", choices=DATASETS, help="without --workload (default: sharegpt)")
    add(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        help="ShareGPT's JSON (default: fetched), or a CSV with prompt_len and output_len",
    )
    add("--num-requests", type=_count, metavar="N", help=f"default: {NUM_REQUESTS}")
    add("--input-len", type=_count, metavar="TOKENS", help="constant: of each prompt; else longer ones are passed over")
    add("--output-len", type=_count, metavar="TOKENS", help="constant: of each output; else longer ones are cut")
    for name, default in PREFIX_REPETITION.items():
        add(f"--{name.replace('_', '-')}", type=_count, metavar="N", help=f"default: {default}")
    add("--order", choices=get_args(Order), default="file", help="of the requests, by the prompt (default: file)")
    add("--sort-prompts", dest="order", action="store_const", const="longest-first", help="--order longest-first")
    add(
        "--hide-output-lengths",
        action="store_true",
        help="let the scheduler know only that outputs end within the context",
    )
    add(
        "--against",
        default="",
        metavar="T4,P4,...",
        help="run the same requests in these static layouts too, each in a fresh engine, and compare",
    )
    add("--dummy-weights", action="store_true", help="--load-format dummy")
    add("--hf-token", metavar="TOKEN", help="for models and tokenizers from the hub")
    add("--print-output", action="store_true", help="print what the first system generated")
    add(
        "--limits", type=Path, metavar="FILE", help="what `seesaw bench limits` saved: show how far from it each run is"
    )
    add("--output-json", type=Path, metavar="FILE", help="save all figures, and the lengths and times of each request")
    add_flags(parser, "engine", EngineConfig)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _config(args: argparse.Namespace) -> EngineConfig:
    given = {"config": args.config} | {f.name: getattr(args, f.name) for f in fields(EngineConfig)}
    if args.dummy_weights:
        given["load_format"] = "dummy"
    return read_configs({name: value for name, value in given.items() if value is not None})[0]


def _systems(config: EngineConfig, against: str) -> list[EngineConfig]:
    """The configured plan, then the static ones. Only the first is traced."""
    layouts = [name for name in against.split(",") if name]
    return [config] + [replace(config, prefill=layout, decode="", tail="", trace="") for layout in layouts]


def _host(config: EngineConfig, limits: Path) -> Host:
    return Host(find_shape(config), read_profile(limits), config.max_num_seqs, config.max_num_batched_tokens)


def _dataset(args: argparse.Namespace, config: EngineConfig, tokenizer: Tokenizer | None) -> Workload:
    """The workload that is named by `--dataset` and the flags beside it."""
    num = args.num_requests
    if args.dataset == "constant":
        if not (args.input_len and args.output_len):
            raise ConfigError("--dataset constant needs --input-len and --output-len")
        if args.dataset_path is not None:
            raise ConfigError("--dataset constant reads no file: leave out --dataset-path, or give --dataset csv")
        return Workload(f"{num}x{args.input_len}:{args.output_len}", [Job(args.input_len, args.output_len)] * num)
    if args.dataset == "prefix_repetition":
        if args.dataset_path is not None or args.input_len is not None or args.output_len is not None:
            raise ConfigError(
                "--dataset prefix_repetition has its own lengths: leave out --dataset-path, --input-len, --output-len"
            )
        prefix, suffix, prefixes, output = (getattr(args, name) or value for name, value in PREFIX_REPETITION.items())
        return prefix_repetition(num, prefix, suffix, output, prefixes, config.seed)
    if args.dataset == "csv":
        if args.dataset_path is None:
            raise ConfigError("--dataset csv needs --dataset-path")
        jobs = read_lengths(args.dataset_path, num, args.input_len, args.output_len)
        return Workload(f"{num}x{args.dataset_path.name}", jobs)
    assert tokenizer is not None
    return Workload(f"{num}xShareGPT", _conversations(args, config, tokenizer))


def _conversations(args: argparse.Namespace, config: EngineConfig, tokenizer: Tokenizer) -> list[Job]:
    single = SingleTexts(tokenizer)
    try:
        samples = load_sharegpt(
            args.dataset_path or sharegpt(),
            single,
            args.num_requests,
            config.seed,
            max_total_tokens=min(SHAREGPT_TOTAL_TOKENS, config.max_model_len or SHAREGPT_TOTAL_TOKENS),
            max_prompt_tokens=args.input_len or SHAREGPT_PROMPT_TOKENS,
            max_output_tokens=args.output_len,
        )
    except (FetchError, OSError, ValueError) as error:
        raise ConfigError(f"cannot draw {args.num_requests} conversations: {error}") from None
    if config.load_format == "dummy" or config.executor == "simulated":
        return [Job(s.prompt_tokens, s.output_tokens) for s in samples]  # only lengths count
    return [Job(s.prompt_tokens, s.output_tokens, tuple(single.encode(s.prompt))) for s in samples]


def _report(
    args: argparse.Namespace,
    config: EngineConfig,
    workloads: Sequence[Workload],
    results: Sequence[Sequence[SystemResult]],
) -> dict[str, object]:
    """`results` are by workload, and then by system."""
    info = results[0][0].info
    return {
        "kind": "seesaw-offline",
        **args.provenance,
        "model": config.model,
        "device": info.device,
        "dtype": info.dtype,
        "order": args.order,
        "hide_output_lengths": args.hide_output_lengths,
        "config": asdict(config),
        "workloads": [
            {
                "workload": load.name,
                "num_requests": len(load.jobs),
                "systems": [result.to_json() for result in done],
            }
            for load, done in zip(workloads, results, strict=True)
            if done
        ],
    }
