"""Rates of a GPU: matrix products at a model's layer shapes, device memory, and copies to and from pinned host memory.

Called by `engine.bench.limits`. A burst of products is faster than a sustained run: GPUs slow down when they are hot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from seesaw.engine.model.counts import layer_linears
from seesaw.engine.model.shapes import ModelShape

MATMUL_ROWS = 8192
COPY_BYTES = 1 << 30


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
    sizes = [(linear.out_size(1), linear.in_size(1)) for linear in layer_linears(shape)]
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
