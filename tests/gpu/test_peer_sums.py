"""Sums over shared device memory against all-reduces in float32: eager, and replayed from a CUDA graph."""

from __future__ import annotations

import os
from itertools import permutations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.sums import Half
from seesaw.engine.ops.fp8 import Fp8Format, Quantized, dequantized
from seesaw.engine.parallel.process_groups import ShardGroup

pytestmark = pytest.mark.gpu

MAX_ROWS = 2049
EPS = 1e-5


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("hidden", "dtype"), [(576, "bfloat16"), (5120, "float16"), (8192, "bfloat16")])
def test_sums_of_shards(tmp_path: Path, size: int, hidden: int, dtype: str) -> None:
    if torch.cuda.device_count() < size:
        pytest.skip(f"needs {size} CUDA devices")
    from seesaw.engine.parallel.peers import has_atomics

    if not all(
        torch.cuda.can_device_access_peer(*pair) and has_atomics(*pair) for pair in permutations(range(size), 2)
    ):
        pytest.skip("these GPUs do not reach each other over NVLink")
    spawn(_check, (size, tmp_path / "rendezvous", hidden, getattr(torch, dtype)), nprocs=size)


def _check(rank: int, size: int, rendezvous: Path, hidden: int, dtype: torch.dtype) -> None:
    from seesaw.engine.model.peer_sums import PeerSums
    from seesaw.engine.parallel.groups import join_world
    from seesaw.engine.parallel.peers import can_share

    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    torch.cuda.set_stream(torch.cuda.Stream(device))
    join_world(rank, size, rendezvous, device)
    group = ShardGroup(range(size), rank, dist.new_group(list(range(size))))
    assert can_share(group, device) and not can_share(group, device, "off")
    os.environ["NCCL_P2P_DISABLE"] = "1"
    assert not can_share(group, device)
    # Up to 50 rows in one shot, so that some of what follows takes each way, and some both in turn.
    one_shot_bytes = 50 * hidden * dtype.itemsize * (size - 1)
    sums = PeerSums(group, MAX_ROWS, hidden, dtype, device, one_shot_bytes=one_shot_bytes)
    torch.manual_seed(1 + rank)
    x = torch.randn(MAX_ROWS, 64, device=device).to(dtype)
    linear = Linear(torch.randn(hidden, 64, device=device).to(dtype) / 8)
    torch.manual_seed(0)
    stream = torch.randn(MAX_ROWS, hidden, device=device).to(dtype)
    weight = torch.rand(hidden, device=device).to(dtype)

    for rows in (1, 300, 2, 7, 40, MAX_ROWS):
        exact = linear.product(x[:rows]).float()
        dist.all_reduce(exact)
        summed = exact + stream[:rows].float()
        norm = summed * torch.rsqrt(summed.square().mean(-1, keepdim=True) + EPS) * weight.float()

        _close(sums.total(linear.product(x[:rows])), exact)
        for _ in range(2):
            residual = stream[:rows].clone()
            part = sums.product(x[:rows], linear, Half.ATTENTION)
            normed, residual = sums.add_norm(part, residual, weight, EPS)
            _close(normed, norm)
            part = sums.product(torch.zeros_like(x[:rows]), linear, Half.MLP)
            _close(sums.total(part, residual), summed)

    graph = torch.cuda.CUDAGraph()
    inputs, residual = x[:40].clone(), stream[:40].clone()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        normed, residual = sums.add_norm(sums.product(inputs, linear, Half.ATTENTION), residual, weight, EPS)
        outputs = sums.total(sums.product(normed[:, :64].clone(), linear, Half.MLP), residual)
    for start in range(0, 1600, 40):
        inputs.copy_(x[start : start + 40])
        residual.copy_(stream[start : start + 40])
        graph.replay()
        eager = stream[start : start + 40].clone()
        expected, eager = sums.add_norm(sums.product(x[start : start + 40], linear, Half.ATTENTION), eager, weight, EPS)
        expected = sums.total(sums.product(expected[:, :64].clone(), linear, Half.MLP), eager)
        assert torch.equal(outputs, expected)
    if dtype == torch.bfloat16 and torch.cuda.get_device_capability() >= (8, 9):
        _check_rounding(group, x, linear, stream, weight)
    dist.destroy_process_group()


def _check_rounding(
    group: ShardGroup, x: torch.Tensor, linear: Linear, stream: torch.Tensor, weight: torch.Tensor
) -> None:
    """A norm in 8 bits is the norm rounded to 8 bits: a row has a scale, is given one, or has several."""
    from seesaw.engine.model.peer_sums import PeerSums
    from seesaw.engine.ops import fp8_kernels

    sums = PeerSums(group, MAX_ROWS, stream.shape[1], stream.dtype, x.device, fp8_kernels.quantize)
    for rows in (1, 7, 300, MAX_ROWS):
        for format in (Fp8Format(), Fp8Format(scale=torch.full((1,), 0.02, device=x.device)), Fp8Format(64)):
            part = sums.product(x[:rows], linear, Half.ATTENTION)
            normed, after = sums.add_norm(part, stream[:rows].clone(), weight, EPS)
            assert isinstance(normed, torch.Tensor)
            wanted = fp8_kernels.quantize(normed.clone(), format)
            part = sums.product(x[:rows], linear, Half.MLP)
            got, rounded_after = sums.add_norm(part, stream[:rows].clone(), weight, EPS, format)
            assert isinstance(got, Quantized)
            # Few differ: another kernel may sum squares in another order.
            _close(dequantized(got.data, got.scales), dequantized(wanted.data, wanted.scales))
            assert torch.equal(after, rounded_after)


def _close(got: torch.Tensor, exact: torch.Tensor) -> None:
    error = (got.float() - exact).norm() / exact.norm()
    assert error < 4e-3, error  # of bfloat16
