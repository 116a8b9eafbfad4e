"""Swaps over registered shared memory: what leaves in one layout comes back in another, in order with the forwards."""

from __future__ import annotations

import pytest
import torch

from seesaw.engine.kv.device_pool import DevicePool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.host_pool import HostPool
from seesaw.engine.kv.segment import Segment, register
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.wire.commands import Report, Swap
from tests.tiny import tiny_shape

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda", 0)


def test_a_swap_out_and_a_swap_in_re_shard_the_kv() -> None:
    from seesaw.engine.device.reports import EventReports
    from seesaw.engine.kv.cuda_copies import CudaBlockCopier, CudaCopies

    plan = Plan(Layout.parse("P2"), Layout.parse("T2"))
    shape = tiny_shape(layers=5, kv_heads=4, head_dim=64, dtype="bfloat16")
    geometry = KVGeometry(shape, plan, block_size=16)
    memory = Segment.create(9 * geometry.host_block_bytes, "the test's pool").map()
    register(memory, range(0, memory.numel(), geometry.host_block_bytes))
    host = HostPool(geometry, 9, memory)
    pools = [DevicePool(geometry, rank, 6, CUDA) for rank in range(2)]
    whole = torch.randn(3, 5, 4, 2, 16, 64, device=CUDA).bfloat16()
    reports: list[Report] = []
    errors: list[BaseException] = []
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        copies = [
            CudaCopies(
                rank,
                CudaBlockCopier(geometry, rank, pools[rank], host),
                CUDA,
                lambda: EventReports(CUDA, reports.append, errors.append),
                errors.append,
            )
            for rank in range(2)
        ]

        def part(layout: int, rank: int) -> torch.Tensor:
            extent = geometry.extents(plan.layouts[layout])[rank]
            return whole[:, extent.layers.within(0), extent.slices.within(0)]

        for rank in range(2):
            torch.cuda._sleep(100_000_000)  # the swap must wait for the forward that writes the blocks
            pools[rank].view(0)[[0, 2, 5]] = part(0, rank)
            copies[rank].submit(Swap(1, 0, 0, True, [0, 2, 5], [8, 1, 4]))
    for rank in range(2):
        copies[rank].close()
    assert not errors and [report.bytes for report in reports] == [
        geometry.host_block_bytes * 3 * n // 5 for n in (3, 2)
    ]
    assert torch.equal(host._blocks[[8, 1, 4]], whole.cpu())
    for rank in range(2):
        pools[rank].poison()
        lane = CudaCopies(
            rank,
            CudaBlockCopier(geometry, rank, pools[rank], host),
            CUDA,
            lambda: EventReports(CUDA, reports.append, errors.append),
            errors.append,
        )
        torch.cuda.synchronize()
        lane.submit(Swap(2, 1, 0, False, [3, 4, 1], [8, 1, 4]))
        lane.close()
        assert torch.equal(pools[rank].view(1)[[3, 4, 1]], part(1, rank))
    assert not errors and all(report.seconds > 0 for report in reports)
