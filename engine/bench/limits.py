"""`seesaw bench limits`: what this host can do at most, and each step's floor from that.

Measures matrix products at a model's layer shapes (a short burst, and sustained: GPUs slow down when they are hot),
device memory, copies to and from pinned host memory, and links between GPUs at several sizes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from engine.bench.floors import Ceilings, Chunks, exchanged_bytes, step_work
from engine.errors import ConfigError
from engine.model.shapes import ModelShape, check_layout, read_shape
from engine.parallel.groups import join_world
from engine.parallel.layout import Layout
from engine.weights.loader import resolve_checkpoint

MATMUL_ROWS = 8192
COPY_BYTES = 1 << 30
LINK_BYTES = [1 << power for power in (14, 17, 20, 23, 26, 28)]
STEPS: dict[str, Chunks] = {
    "decode, 256 sequences at 512 tokens": [(1, 512)] * 256,
    "decode, 512 sequences at 160 tokens": [(1, 160)] * 512,
    "prefill, 4 x 2048 tokens": [(2048, 2048)] * 4,
}


def main(argv: Sequence[str], prog: str) -> int:
    """Measure, print a table, and write JSON if asked to. Raises ConfigError."""
    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("model", help="checkpoint folder or hub name; only its config.json is read")
    parser.add_argument("--layouts", default="", help="layouts whose floors are shown, as in T1,P4 (default: T and P)")
    parser.add_argument("--sustain-s", type=float, default=10.0, help="length of the sustained matmul (default: 10)")
    parser.add_argument("--output-json", type=Path)
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise ConfigError("bench limits measures GPUs, and this host has none that torch can use")
    shape = read_shape(resolve_checkpoint(arguments.model, "dummy"), "auto")
    gpus = torch.cuda.device_count()
    names = arguments.layouts.split(",") if arguments.layouts else dict.fromkeys((f"T{gpus}", f"P{gpus}"))
    layouts = [Layout.parse(name) for name in names]
    for layout in layouts:
        check_layout(layout, shape)

    limits: dict[str, Any] = {"device": torch.cuda.get_device_name(), "gpus": gpus, "torch": torch.__version__}
    limits |= measure_device(shape, arguments.sustain_s)
    if gpus > 1:
        limits["links"] = measure_links(gpus)
    limits["floors"] = floors(shape, layouts, limits)
    print(table(limits))
    if arguments.output_json:
        arguments.output_json.write_text(json.dumps(limits, indent=1) + "\n")
    return 0


def seconds_of(work: Callable[[], Any], at_least_s: float = 0.2) -> float:
    """Seconds of one call, on the device: the mean over as many calls as fill `at_least_s`."""
    work()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began, calls = time.perf_counter(), 0
    start.record()
    while calls < 3 or time.perf_counter() - began < at_least_s:
        work()
        calls += 1
        if calls % 8 == 0:
            torch.cuda.synchronize()  # so that the clock of the host follows the device
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def measure_device(shape: ModelShape, sustain_s: float) -> dict[str, Any]:
    """Rates of the first GPU: FLOP/s and bytes/s (device memory: read plus written)."""
    one, two = (torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda") for _ in range(2))
    host = torch.empty(COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    rates: dict[str, Any] = {
        "memory_bytes_per_s": 2 * COPY_BYTES / seconds_of(lambda: two.copy_(one)),
        "host_to_device_bytes_per_s": COPY_BYTES / seconds_of(lambda: one.copy_(host, non_blocking=True)),
        "device_to_host_bytes_per_s": COPY_BYTES / seconds_of(lambda: host.copy_(one, non_blocking=True)),
    }
    return rates | _measure_matmul(shape, sustain_s)


def _measure_matmul(shape: ModelShape, sustain_s: float) -> dict[str, float]:
    """One layer's products after another, over and over."""
    qkv = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    sizes = [
        (qkv, shape.hidden),
        (shape.hidden, shape.num_heads * shape.head_dim),
        (2 * shape.ffn, shape.hidden),
        (shape.hidden, shape.ffn),
    ]
    dtype: torch.dtype = getattr(torch, shape.dtype)
    layer = [
        (
            torch.randn(MATMUL_ROWS, inner, device="cuda", dtype=dtype),
            torch.randn(out, inner, device="cuda", dtype=dtype),
        )
        for out, inner in sizes
    ]
    flops = sum(2.0 * MATMUL_ROWS * out * inner for out, inner in sizes)

    def run_layer() -> None:
        for x, weight in layer:
            torch.nn.functional.linear(x, weight)

    return {
        "matmul_burst_flops_per_s": flops / seconds_of(run_layer),
        "matmul_flops_per_s": flops / seconds_of(run_layer, sustain_s),
    }


def measure_links(gpus: int) -> dict[str, dict[str, float]]:
    """Seconds of each collective by bytes of a rank's tensor, over NCCL as the environment has it set."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_measure_links, (gpus, folder), nprocs=gpus)
        result: dict[str, dict[str, float]] = json.loads((Path(folder) / "links.json").read_text())
        return result


def _measure_links(rank: int, gpus: int, folder: str) -> None:
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    join_world(rank, gpus, Path(folder) / "rendezvous", device)
    seconds: dict[str, dict[str, float]] = {"all_reduce": {}, "all_to_all": {}, "send": {}}
    for num_bytes in LINK_BYTES:
        for name, measured in _measure_size(num_bytes, rank, gpus, device).items():
            seconds[name][str(num_bytes)] = measured
    if rank == 0:
        (Path(folder) / "links.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def _measure_size(num_bytes: int, rank: int, gpus: int, device: torch.device) -> dict[str, float]:
    x, y = (torch.zeros(num_bytes // 2, dtype=torch.bfloat16, device=device) for _ in range(2))
    ring = [dist.P2POp(dist.isend, x, (rank + 1) % gpus), dist.P2POp(dist.irecv, y, (rank - 1) % gpus)]

    def pass_on() -> None:
        for request in dist.batch_isend_irecv(ring):
            request.wait()

    return {
        "all_reduce": _seconds_together(lambda: dist.all_reduce(x)),
        "all_to_all": _seconds_together(lambda: dist.all_to_all_single(y, x)),
        "send": _seconds_together(pass_on),
    }


def _seconds_together(work: Callable[[], Any], calls: int = 20) -> float:
    """As `seconds_of`, but every rank makes the same number of calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):
        work()
    dist.barrier()
    start.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def floors(shape: ModelShape, layouts: Sequence[Layout], limits: dict[str, Any]) -> list[dict[str, Any]]:
    """The least time of typical steps on one device of each layout, without and with what it exchanges."""
    ceilings = Ceilings(limits["matmul_flops_per_s"], limits["memory_bytes_per_s"])
    rows = []
    for layout in layouts:
        for name, chunks in STEPS.items():
            work = step_work(shape, layout, chunks)
            tokens = sum(query for query, _ in chunks)
            row: dict[str, Any] = {"layout": str(layout), "step": name, "floor_s": work.floor_s(ceilings)}
            if "links" in limits:
                row["links_s"] = sum(
                    _link_s(limits["links"][kind], num_bytes, tokens * shape.hidden * shape.dtype_bytes)
                    for kind, num_bytes in exchanged_bytes(shape, layout, tokens).items()
                )
            rows.append(row)
    return rows


def _link_s(seconds_by_bytes: dict[str, float], total_bytes: float, message_bytes: int) -> float:
    """Seconds of `total_bytes` in messages of `message_bytes`, at the rate of the nearest measured size."""
    nearest = min(seconds_by_bytes, key=lambda size: abs(int(size) - message_bytes))
    return total_bytes * seconds_by_bytes[nearest] / int(nearest)


def table(limits: dict[str, Any]) -> str:
    """What was measured, for a person."""
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
    for row in limits["floors"]:
        links = f" + {row['links_s'] * 1e3:.2f} ms links" if "links_s" in row else ""
        lines.append(f"{row['layout']:6} {row['step']:38} floor {row['floor_s'] * 1e3:8.2f} ms{links}")
    return "\n".join(lines)
