"""Prefill and decode of one model shape with each attention backend that this GPU has, side by side.

Called by `scripts/check_gpu.sh`. Each is a fresh engine with random weights; one run each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # Seesaw need not be installed for this

from seesaw.engine.bench.tables import aligned  # noqa: E402
from seesaw.engine.ops.capability import (  # noqa: E402
    PORTABLE_VARIABLE,
    Capability,
    attention_backends,
    capability_of,
    has_xqa,
    written,
)

CONFIG = REPOSITORY / "configs" / "llama3-8b-1xh100.json"
WARM_UP = "4x16:4"  # what only the first steps do is not measured
PREFILLS = ("64x220:1", "32x2048:1", "8x8000:1")
DECODE = "256x384:256"


def variants(capability: Capability, fp8_kv: bool = False) -> dict[str, tuple[list[str], dict[str, str]]]:
    """By name, the flags and the environment of each way to run on such a GPU."""
    backends = attention_backends(capability, fp8_kv=fp8_kv)
    ways: dict[str, tuple[list[str], dict[str, str]]] = {"auto": ([], {})}
    if len(backends) > 1 or (fp8_kv and has_xqa(capability)):
        ways |= {name: (["--attention-backend", name], {}) for name in backends}
    return ways if fp8_kv else ways | {"portable": ([], {PORTABLE_VARIABLE: "1"})}  # which has no 8 bits


def measure(config: str, flags: Sequence[str], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """What `bench offline` says of each workload but the first. Ends the program if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", "seesaw.server.cli", "bench", "offline", config, "--dummy-weights"]
        for workload in (WARM_UP, *PREFILLS, DECODE):
            command += ["--workload", workload]
        path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
        done = subprocess.run(
            [*command, *flags, "--output-json", str(out)],
            env={**os.environ, **environment, "PYTHONPATH": path},
            stdout=subprocess.DEVNULL,
        )
        if done.returncode:
            sys.exit(done.returncode)
        workloads = json.loads(out.read_text())["workloads"]
    return [workload["systems"][0] for workload in workloads[1:]]


def row(name: str, systems: Sequence[dict[str, Any]]) -> list[str]:
    *prefills, decode = systems
    cells = [f"{system['input_tokens_per_second']:,.0f}" for system in prefills]
    step = decode["full_decode"]
    return [name, *cells, f"{step['step_s'] * 1e3:.2f}" if step else "-", f"{decode['output_tokens_per_second']:,.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None, allow_abbrev=False)
    parser.add_argument("config", nargs="?", default=str(CONFIG), help=f"default: {CONFIG.name}")
    parser.add_argument("--kv-cache-dtype", default="auto", help="as the engine's, whose other options may follow, too")
    args, flags = parser.parse_known_args()
    flags += ["--kv-cache-dtype", args.kv_cache_dtype]

    import torch

    if not torch.cuda.is_available():
        print("attention_speed: error: this needs a GPU that torch can use", file=sys.stderr)
        sys.exit(2)
    capability = capability_of(torch.device("cuda", 0))
    print(f"{torch.cuda.get_device_name(0)}, compute capability {written(capability)}; {Path(args.config).name}")
    rows = [["attention", *(f"{name} in tok/s" for name in PREFILLS), f"{DECODE} step ms", "out tok/s"]]
    for name, (more, environment) in variants(capability, args.kv_cache_dtype == "fp8").items():
        print(f"measuring {name}", file=sys.stderr)
        rows.append(row(name, measure(args.config, [*more, *flags], environment)))
    print("\n".join(aligned(rows)))


if __name__ == "__main__":
    main()
