"""`seesaw bench limits`: what this host can do at most, and from that each step's floor and each workload's bound.

Measures matrix products at a model's layer shapes (a short burst, and sustained: GPUs slow down when they are hot),
device memory, copies to and from pinned host memory, and links between GPUs at several sizes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import torch

from seesaw.engine.bench.bounds import Host, bound
from seesaw.engine.bench.ceilings import measure_device
from seesaw.engine.bench.links import measure_links
from seesaw.engine.bench.outputs import check_output
from seesaw.engine.bench.tables import aligned
from seesaw.engine.bench.workload import Workload, add_workload_flag
from seesaw.engine.cost.profile import HostProfile
from seesaw.engine.cost.work import Chunks, exchange_s, step_work
from seesaw.engine.device.choice import why_no_gpu
from seesaw.engine.device.out_of_memory import memory_errors
from seesaw.engine.model.shapes import ModelShape, check_layout
from seesaw.engine.ops.capability import written
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.sizing.model import find_shape, known_shape
from seesaw.engine.values.config import CustomAllReduce, EngineConfig
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.json_file import read_object

STEPS: dict[str, Chunks] = {
    "decode, 256 sequences at 512 tokens": [(1, 512)] * 256,
    "decode, 512 sequences at 160 tokens": [(1, 160)] * 512,
    "prefill, 4 x 2048 tokens": [(2048, 2048)] * 4,
}


def main(argv: Sequence[str], prog: str) -> int:
    """Measure, print tables, and write JSON if asked to. Raises ConfigError."""
    arguments = _parser(prog).parse_args(argv)
    config = EngineConfig(
        model=arguments.model,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
    )
    check_output(arguments.output_json)
    _check_no_file(arguments.model)
    layouts = [Layout.parse(name) for name in arguments.layouts.split(",")] if arguments.layouts else []
    known = known_shape(config)  # what can be refused now needs no GPU and no hub
    if known is not None:
        _check_layouts(layouts, known)
    if not torch.cuda.is_available():
        raise ConfigError(f"bench limits measures GPUs, and {why_no_gpu()}")
    shape = known or find_shape(config)
    gpus = torch.cuda.device_count()
    layouts = layouts or list(dict.fromkeys((Layout(tp=gpus), Layout(pp=gpus))))
    _check_layouts(layouts, shape)

    limits: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "compute_capability": written(torch.cuda.get_device_capability()),
        "gpus": gpus,
        "torch": torch.__version__,
    }
    device = torch.device("cuda", torch.cuda.current_device())
    with memory_errors("what is measured", device, "free some of what other processes hold, or give a smaller model"):
        limits |= measure_device(shape, arguments.sustain_s)
        if gpus > 1:
            limits["links"] = measure_links(gpus, arguments.custom_all_reduce)
    profile = HostProfile.from_json(limits)
    host = Host(shape, profile, config.max_num_seqs, config.max_num_batched_tokens)
    limits["floors"] = floors(shape, layouts, profile)
    limits["bounds"] = bounds(host, layouts, arguments.workload)
    print(table(limits))
    if arguments.output_json:
        arguments.output_json.write_text(json.dumps(limits, indent=1) + "\n")
    return 0


def _check_layouts(layouts: Sequence[Layout], shape: ModelShape) -> None:
    for layout in layouts:
        check_layout(layout, shape)


def _check_no_file(model: str) -> None:
    """Raise ConfigError for a file, such as an engine's config; it names a model, but is none."""
    with suppress(OSError, RuntimeError):  # no path at all
        path = Path(model).expanduser()
        if path.is_file():
            shape = _shape_key(path)
            named = f"a config: give the folder that its `shape` names, {path.parent / shape}"
            raise ConfigError(f"{path} is {named if shape else 'a file: give the folder of a model'}")


def _shape_key(path: Path) -> str:
    """The `shape` of an engine's config; nothing in any other file."""
    if path.suffix != ".json":
        return ""
    try:
        shape = read_object(path, "").get("shape")
    except ConfigError:
        return ""
    return shape if isinstance(shape, str) else ""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("model", help="checkpoint folder or hub name; only its config.json is read")
    parser.add_argument("--layouts", default="", help="layouts whose floors are shown, as in T1,P4 (default: T and P)")
    parser.add_argument("--sustain-s", type=float, default=10.0, help="length of the sustained matmul (default: 10)")
    parser.add_argument(
        "--custom-all-reduce", choices=get_args(CustomAllReduce), default="auto", help="the engine's (default: auto)"
    )
    add_workload_flag(parser.add_argument)
    for name in ("max_num_seqs", "max_num_batched_tokens"):
        default = getattr(EngineConfig, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=int, default=default, help=f"the engine's, for bounds (default: {default})")
    parser.add_argument("--output-json", type=Path, help="save all of it, for `seesaw bench offline --limits`")
    return parser


def floors(shape: ModelShape, layouts: Sequence[Layout], profile: HostProfile) -> list[dict[str, Any]]:
    """The least time of typical steps on one device of each layout, without and with what it exchanges."""
    return [
        {
            "layout": str(layout),
            "step": name,
            "floor_s": step_work(shape, layout, chunks).floor_s(profile),
            "links_s": exchange_s(shape, layout, sum(query for query, _ in chunks), profile),
        }
        for layout in layouts
        for name, chunks in STEPS.items()
    ]


def bounds(host: Host, layouts: Sequence[Layout], workloads: Sequence[Workload]) -> list[dict[str, Any]]:
    """The least time of each workload in each static layout."""
    return [
        {"layout": str(layout), "workload": load.name, **bound(host, Plan(layout, layout), load.jobs).to_json()}
        for load in workloads
        for layout in layouts
    ]


def table(limits: dict[str, Any]) -> str:
    """What was measured and what follows from it, for a person."""
    lines = [
        f"{limits['gpus']} x {limits['device']}",
        f"matmul       {limits['matmul_flops_per_s'] / 1e12:8.0f} TFLOP/s sustained",
        f"             {limits['matmul_burst_flops_per_s'] / 1e12:8.0f} TFLOP/s in a burst",
        f"memory       {limits['memory_bytes_per_s'] / 1e9:8.0f} GB/s read plus written",
        f"host copies  {limits['host_to_device_bytes_per_s'] / 1e9:8.1f} GB/s in",
        f"             {limits['device_to_host_bytes_per_s'] / 1e9:8.1f} GB/s out",
    ]
    for kind, seconds in limits.get("links", {}).items():
        sizes = ", ".join(f"{int(size) >> 10} KiB {s * 1e6:.0f} us" for size, s in seconds.items())
        lines.append(f"{kind:12} {sizes}")
    lines += ["", "floors of steps"]
    for row in limits["floors"]:
        links = f" + {row['links_s'] * 1e3:.2f} ms links" if row["links_s"] else ""
        lines.append(f"{row['layout']:6} {row['step']:38} {row['floor_s'] * 1e3:8.2f} ms{links}")
    if limits["bounds"]:
        head = ["bounds", "workload", "work s", "+ links s", "longest s", "at least s", "at most req/s"]
        columns = ("work_s", "links_s", "longest_s", "total_s", "requests_per_second")
        rows = [[row["layout"], row["workload"], *(f"{row[c]:.2f}" for c in columns)] for row in limits["bounds"]]
        lines += ["", *aligned([head, *rows])]
    return "\n".join(lines)
