"""The flags of the load test, named as those of `vllm bench serve`. Called by `clients.load_test`."""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from seesaw.clients import argument_types as types
from seesaw.clients.arrivals import RampUp
from seesaw.clients.errors import ClientError
from seesaw.clients.figures import GOODPUT_METRICS, SUMMARIZED
from seesaw.clients.provenance import provenance

DATASETS = ("random", "constant", "prefix_repetition", "sharegpt", "csv", "timed_trace")
SAMPLING = {
    "temperature": types.number(0, 100),
    "top_p": types.number(0, 1),
    "top_k": types.integer(-1),
    "min_p": types.number(0, 1),
}
# Where each backend's requests go, unless --endpoint says.
ENDPOINTS = {"openai": "/v1/completions", "vllm": "/v1/completions", "openai-chat": "/v1/chat/completions"}
CHAT = "openai-chat"
# Random tokens mean nothing: a model would stop anywhere, and no two servers would do the same work.
WITHOUT_EOS = ("random", "constant", "prefix_repetition", "csv", "timed_trace")
LIKE = 0.65  # how like a flag must be to be meant


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ClientError(f"{message}; see `{self.prog} --help`")

    def parse_args(self, args: Sequence[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        found, unknown = self.parse_known_args(args)
        if unknown:
            flag = unknown[0].partition("=")[0]
            like = " or ".join(difflib.get_close_matches(flag, self._option_string_actions, 2, cutoff=LIKE))
            what = "flag" if flag.startswith("-") else "place for"
            self.error(f"there is no {what} {flag}" + (f": did you mean {like}?" if like else ""))
        return found


def parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    """The flags, checked, with what follows from them filled in. Raises ClientError."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser(prog).parse_args(argv)
    args.provenance = provenance(prog, argv)
    args.base_url = args.base_url or _url(args.host, args.port)
    args.endpoint = args.endpoint or ENDPOINTS[args.backend]
    args.random_input_len = args.input_len or args.random_input_len
    args.random_output_len = args.output_len or args.random_output_len
    args.sharegpt_output_len = args.output_len or args.sharegpt_output_len
    args.prefix_repetition_output_len = args.output_len or args.prefix_repetition_output_len
    if args.ignore_eos is None:
        args.ignore_eos = args.dataset_name in WITHOUT_EOS
    if args.tokenize_prompt is None:
        args.tokenize_prompt = args.dataset_name != "sharegpt" and args.backend != CHAT
    args.metadata, args.header = types.pairs(args.metadata, "--metadata"), types.headers(args.header, "--header")
    args.goodput = _goodput(args.goodput)
    args.ramp_up = _ramp_up(args)
    if args.self_timed is None:
        args.self_timed = args.dataset_name == "timed_trace"
    _check(args)
    return args


def _check(args: argparse.Namespace) -> None:
    needs_path = args.dataset_name in ("csv", "timed_trace")
    if needs_path and args.dataset_path is None:
        raise ClientError(f"--dataset-name {args.dataset_name} needs --dataset-path")
    if args.dataset_path is not None and not needs_path and args.dataset_name != "sharegpt":
        raise ClientError(f"--dataset-name {args.dataset_name} takes no --dataset-path: leave it out")
    if args.self_timed and args.dataset_name != "timed_trace":
        raise ClientError("--self-timed needs --dataset-name timed_trace, the only data set with times")
    if args.self_timed and (args.ramp_up is not None or not math.isinf(args.request_rate)):
        raise ClientError("a trace brings its own arrival times: leave out the rate, or give --no-self-timed")
    if args.endpoint.rstrip("/").endswith("/chat/completions") != (args.backend == CHAT):
        raise ClientError(f"--backend {args.backend} does not fit --endpoint {args.endpoint}: chat is {CHAT}'s")
    if args.tokenize_prompt and args.backend == CHAT:
        raise ClientError("a chat is text: leave out --tokenize-prompt")
    if args.tokenize_prompt and args.dataset_name == "sharegpt":
        raise ClientError("sharegpt's prompts are sent as text: leave out --tokenize-prompt")
    if args.random_range_ratio == 1:
        raise ClientError("--random-range-ratio must be less than 1")
    if args.dataset_name == "prefix_repetition":
        _check_prefixes(args)
    if args.save_detailed and not args.save_result:
        raise ClientError("--save-detailed needs --save-result")


def _check_prefixes(args: argparse.Namespace) -> None:
    if args.input_len is not None:
        raise ClientError("prefix_repetition takes --prefix-repetition-prefix-len and -suffix-len, no --input-len")
    if args.num_prompts < args.prefix_repetition_num_prefixes:
        raise ClientError("--prefix-repetition-num-prefixes must be at most --num-prompts")


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=prog,
        allow_abbrev=False,
        description="Load an OpenAI-compatible server and measure throughput and latency.",
    )
    count, seconds, share = types.integer(1), types.number(0, types.LARGEST), types.number(0, 1)
    target = parser.add_argument_group("server")
    target.add_argument("--backend", choices=tuple(ENDPOINTS), default="openai", help="vllm: as openai")
    target.add_argument("--base-url", type=types.url, help="instead of --host and --port")
    target.add_argument("--host", default="127.0.0.1")
    target.add_argument("--port", type=types.integer(1, 65535), default=8000)
    target.add_argument("--endpoint", type=types.path, help="default: the backend's, such as /v1/completions")
    target.add_argument("--model", help="default: the first that the server serves")
    target.add_argument("--served-model-name", help="the name in requests (default: the model)")
    target.add_argument("--tokenizer", help="folder or hub name (default: the model); needed for text only")
    target.add_argument("--header", nargs="*", metavar="KEY=VALUE", help="more headers; OPENAI_API_KEY sets the key")
    target.add_argument("--extra-body", type=types.json_object, default={}, metavar="JSON", help="keys of each request")
    target.add_argument("--insecure", action="store_true", help="do not verify TLS certificates")
    target.add_argument("--ready-check-timeout-sec", type=seconds, default=0, help="wait so long for the server")

    data = parser.add_argument_group("data")
    data.add_argument("--dataset-name", choices=DATASETS, default="random")
    data.add_argument(
        "--dataset-path",
        type=Path,
        help="ShareGPT's JSON (default: fetched), or a CSV with prompt_len,output_len, for timed_trace also arrival_s",
    )
    data.add_argument("--num-prompts", type=count, default=1000)
    data.add_argument("--seed", type=types.integer(0, 2**32 - 1), default=0)
    data.add_argument("--input-len", type=count, help="as --random-input-len")
    data.add_argument("--output-len", type=count, help="as the data set's own, such as --random-output-len")
    data.add_argument("--random-input-len", type=count, default=1024, help="tokens; also of constant")
    data.add_argument("--random-output-len", type=count, default=128, help="tokens; also of constant")
    data.add_argument("--random-range-ratio", type=share, default=0.0, help="lengths vary by this share, up and down")
    data.add_argument("--sharegpt-output-len", type=count, help="tokens (default: the reference answer's)")
    data.add_argument("--prefix-repetition-prefix-len", type=count, default=256, help="tokens that prompts share")
    data.add_argument("--prefix-repetition-suffix-len", type=count, default=256, help="tokens of a prompt's own")
    data.add_argument("--prefix-repetition-num-prefixes", type=count, default=10, help="prefixes, used evenly")
    data.add_argument("--prefix-repetition-output-len", type=count, default=128, help="tokens")
    data.add_argument("--ignore-eos", action=argparse.BooleanOptionalAction, help="default: for random tokens")
    data.add_argument(
        "--tokenize-prompt",
        action=argparse.BooleanOptionalAction,
        help="send random prompts as token ids, the default, or as text, for servers that take no ids",
    )
    for name, kind in SAMPLING.items():
        data.add_argument(f"--{name.replace('_', '-')}", type=kind, help="default: the server's")

    load = parser.add_argument_group("arrivals")
    load.add_argument("--request-rate", type=types.rate, default=math.inf, help="per second; inf sends all at once")
    load.add_argument("--burstiness", type=types.rate, default=1.0, help="1: Poisson; less: burstier; inf: even")
    load.add_argument("--max-concurrency", type=count, help="most requests under way at once; others wait here")
    load.add_argument("--ramp-up-strategy", choices=("linear", "exponential"))
    load.add_argument("--ramp-up-start-rps", type=types.number(types.LEAST_RATE, types.LARGEST))
    load.add_argument("--ramp-up-end-rps", type=types.number(types.LEAST_RATE, types.LARGEST))
    load.add_argument("--self-timed", action=argparse.BooleanOptionalAction, help="arrive as in the trace")
    load.add_argument("--num-warmups", type=types.integer(0), default=0, help="requests before the clock starts")

    out = parser.add_argument_group("results")
    out.add_argument("--percentile-metrics", type=_metrics, default="ttft,tpot,itl", help=f"of {','.join(SUMMARIZED)}")
    out.add_argument("--metric-percentiles", type=_percentiles, default="99", help="such as 50,90,99")
    out.add_argument(
        "--goodput", nargs="+", metavar="KEY:MS", help="bounds of a good request, such as ttft:200 tpot:50"
    )
    out.add_argument("--save-result", action="store_true")
    out.add_argument("--save-detailed", action="store_true", help="with the record of every request")
    out.add_argument("--result-dir")
    out.add_argument("--result-filename")
    out.add_argument("--label", help="what the result is called (default: the backend)")
    out.add_argument("--metadata", nargs="*", metavar="KEY=VALUE", help="more keys of the result")
    out.add_argument("--disable-tqdm", action="store_true", help="no progress")
    return parser


def _ramp_up(args: argparse.Namespace) -> RampUp | None:
    start_rps, end_rps = args.ramp_up_start_rps, args.ramp_up_end_rps
    if args.ramp_up_strategy is None:
        if start_rps is not None or end_rps is not None:
            raise ClientError("--ramp-up-start-rps and --ramp-up-end-rps need --ramp-up-strategy")
        return None
    if start_rps is None or end_rps is None or start_rps > end_rps:
        raise ClientError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps, not below it")
    if not math.isinf(args.request_rate):
        raise ClientError("--ramp-up-strategy sets the rate: leave out --request-rate")
    return RampUp(args.ramp_up_strategy, start_rps, end_rps)


def _goodput(pairs: Sequence[str] | None) -> dict[str, float]:
    bounds_ms: dict[str, float] = {}
    for pair in pairs or ():
        name, _, bound = pair.partition(":")
        try:
            bounds_ms[name] = types.number(0, types.LARGEST)(bound)
        except argparse.ArgumentTypeError:
            raise ClientError(f"--goodput takes KEY:MILLISECONDS, not {pair!r}") from None
        if name not in GOODPUT_METRICS:
            raise ClientError(f"--goodput knows {', '.join(GOODPUT_METRICS)}, not {name!r}")
    return bounds_ms


def _metrics(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SUMMARIZED:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SUMMARIZED)}")
    return names


def _percentiles(text: str) -> list[float]:
    return [types.number(0, 100)(word) for word in text.split(",")]


def _url(host: str, port: int) -> str:
    """An IPv6 address stands in brackets. Raises ClientError."""
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    try:
        return types.url(f"http://{name}:{port}")
    except argparse.ArgumentTypeError:
        raise ClientError(f"--host must be a name or an address, not {host!r}") from None
