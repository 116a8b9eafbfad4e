"""Run the checks of clients against a server, and print a table.

Called by `scripts/check_clients.sh`, with an interpreter that has the clients (`scripts/clients.txt`) and need not have
Seesaw. A check that fails does not keep the others from running. Exits with 1 if one failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import traceback
import urllib.request
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

# All that the clients could ask others for is here. Before they are imported: some read it then.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
os.environ |= {"OPENAI_API_KEY": "none", "TOKENIZERS_PARALLELISM": "false"}

from client_checks import CHECKS, Check, Target, check

GROUPS = ("openai", "batches", "langchain", "litellm", "instructor", "lm_eval")
PACKAGES = {"batches": "openai", "langchain": "langchain-openai", "lm_eval": "lm-eval"}
IDLE_TIMEOUT_S = 30.0
ROW = "{:18} | {:76} | {}"


def is_idle(target: Target) -> None:
    """All requests have ended, and no block of KV is held."""
    deadline = time.monotonic() + IDLE_TIMEOUT_S
    while held := [line for line in _metrics(target) if float(line.split()[-1])]:
        assert time.monotonic() < deadline, f"still held: {held}"
        time.sleep(0.2)


def _metrics(target: Target) -> list[str]:
    with urllib.request.urlopen(f"{target.url}/metrics", timeout=IDLE_TIMEOUT_S) as response:
        lines = response.read().decode().splitlines()
    gauges = ("num_requests_running", "num_requests_waiting", "device_kv_blocks_used", "host_kv_blocks_used")
    found = [line for line in lines if line.startswith(tuple(f"seesaw:{gauge}" for gauge in gauges))]
    assert len(found) >= len(gauges), found
    return found


def result(one: Check, target: Target) -> str:
    """One line on how it went; more of it goes to stderr."""
    start_s = time.monotonic()
    try:
        one.run(target)
    except Exception as error:
        traceback.print_exc()
        return f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return f"ok, {time.monotonic() - start_s:.1f} s"


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--url", required=True, help="of the server, without /v1")
    parser.add_argument("--model", required=True, help="the name that it serves the model by")
    parser.add_argument("--folder", required=True, type=Path, help="the checkpoint that it serves")
    parser.add_argument("clients", nargs="*", default=GROUPS, help=f"of {', '.join(GROUPS)} (default: all)")
    args = parser.parse_args(argv)
    if unknown := set(args.clients) - set(GROUPS):
        parser.error(f"there is no check of {', '.join(sorted(unknown))}: choose from {', '.join(GROUPS)}")
    target = Target(args.url, args.model, args.folder)

    print(ROW.format("client", "what", "result"), flush=True)
    failed = 0
    for group in args.clients:
        importlib.import_module(f"check_clients_{group}")
    check("server", "holds nothing when all have left")(is_idle)
    for one in CHECKS:
        name = one.client if one.client == "server" else f"{one.client} {version(PACKAGES.get(one.client, one.client))}"
        line = result(one, target)
        failed += line.startswith("FAILED")
        print(ROW.format(name, one.what, line), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
