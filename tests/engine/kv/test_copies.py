"""Swapping out in one layout and in in another re-shards the KV: any pair of layouts, all ranks in this process."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.engine.kv.copies import BlockCopier, ThreadCopies
from seesaw.engine.kv.device_pool import DevicePool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.host_pool import HostPool
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.wire.commands import Report, Swap
from tests.tiny import tiny_shape

CPU = torch.device("cpu")
NUM_DEVICE_BLOCKS, NUM_HOST_BLOCKS = 6, 9


class World:
    """All ranks of a plan, their pools NaN-filled, and the KV that their sequences should have."""

    def __init__(self, plan: Plan, layers: int, kv_heads: int) -> None:
        shape = tiny_shape(layers=layers, kv_heads=kv_heads, head_dim=2)
        self.plan, self.geometry = plan, KVGeometry(shape, plan, block_size=2)
        host_bytes = NUM_HOST_BLOCKS * self.geometry.host_block_bytes
        self.host = HostPool(self.geometry, NUM_HOST_BLOCKS, torch.zeros(host_bytes, dtype=torch.uint8))
        self.host.poison()
        self.pools = [DevicePool(self.geometry, rank, NUM_DEVICE_BLOCKS, CPU) for rank in range(plan.world_size)]
        for pool in self.pools:
            pool.poison()
        self.copiers = [BlockCopier(self.geometry, rank, pool, self.host) for rank, pool in enumerate(self.pools)]

    def truth(self, blocks: int, seed: int) -> torch.Tensor:
        """Whole blocks of distinct numbers: `[blocks, layers, kv heads, 2, T, D]`."""
        size = (blocks, self.geometry.shape.num_layers, self.geometry.shape.num_kv_heads, 2, 2, 2)
        return torch.randn(size, generator=torch.Generator().manual_seed(seed))

    def ranks(self, layout: int, replica: int) -> range:
        return self.plan.layouts[layout].replica_ranks(replica)

    def place(self, layout: int, replica: int, blocks: list[int], whole: torch.Tensor) -> None:
        """As if the replica had computed these blocks."""
        for rank in self.ranks(layout, replica):
            self.pools[rank].view(layout)[blocks] = self.part(layout, rank, whole)

    def part(self, layout: int, rank: int, whole: torch.Tensor) -> torch.Tensor:
        extent = self.geometry.extents(self.plan.layouts[layout])[rank]
        return whole[:, extent.layers.within(0), extent.slices.within(0)]

    def holds(self, layout: int, replica: int, blocks: list[int], whole: torch.Tensor) -> bool:
        return all(
            torch.equal(self.pools[rank].view(layout)[blocks], self.part(layout, rank, whole))
            for rank in self.ranks(layout, replica)
        )

    def swap(self, layout: int, replica: int, to_host: bool, device: list[int], host: list[int]) -> int:
        swap = Swap(1, layout, replica, to_host, device, host)
        return sum(self.copiers[rank].copy(swap) for rank in self.ranks(layout, replica))


def layouts_of(world_size: int) -> list[Layout]:
    degrees = itertools.product(range(1, world_size + 1), repeat=3)
    return [Layout(*each) for each in degrees if Layout(*each).world_size == world_size]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    layouts = layouts_of(draw(st.sampled_from([2, 3, 4, 8])))
    layers, kv_heads = draw(st.integers(3, 9)), draw(st.sampled_from([1, 2, 3, 4, 6, 8]))
    fits = [
        layout for layout in layouts if layout.pp <= layers and (kv_heads % layout.tp == 0 or layout.tp % kv_heads == 0)
    ]
    if not fits:
        fits = [layout for layout in layouts if layout.dp == layout.world_size]
    return World(Plan(draw(st.sampled_from(fits)), draw(st.sampled_from(fits))), layers, kv_heads)


@settings(max_examples=60, deadline=None)
@given(world=worlds(), data=st.data())
def test_any_layout_to_any_layout(world: World, data: st.DataObject) -> None:
    """Every replica swaps out, every replica of the other layout swaps in: each rank has its rectangle."""
    last = len(world.plan.layouts) - 1
    source, target = data.draw(st.sampled_from([(0, last), (last, 0)]))
    whole = world.truth(NUM_HOST_BLOCKS, seed=1)
    ids = st.permutations(range(NUM_DEVICE_BLOCKS))
    host = data.draw(st.permutations(range(NUM_HOST_BLOCKS)))
    for n, replica in enumerate(range(min(3, world.plan.layouts[source].dp))):
        device, mine = data.draw(ids)[:3], slice(3 * n, 3 * n + 3)
        world.place(source, replica, device, whole[mine])
        moved = world.swap(source, replica, True, device, host[mine])
        # Copies of a replicated head are written by one rank only: each byte of the block moves once.
        assert moved == 3 * world.geometry.host_block_bytes
    for pool in world.pools:
        pool.poison()
    for n in range(min(3, world.plan.layouts[source].dp)):
        replica = data.draw(st.integers(0, world.plan.layouts[target].dp - 1))
        device, mine = data.draw(ids)[:3], slice(3 * n, 3 * n + 3)
        world.swap(target, replica, False, device, host[mine])
        assert world.holds(target, replica, device, whole[mine])


def swap_heads(whole: torch.Tensor) -> torch.Tensor:
    return whole[:, :, [1, 0, 2, 3]]


def swap_layers(whole: torch.Tensor) -> torch.Tensor:
    return whole[:, [0, 2, 1, 3, 4]]


def swap_blocks(whole: torch.Tensor) -> torch.Tensor:
    return whole[[1, 0, 2]]


@pytest.mark.parametrize("mutate", [swap_heads, swap_layers, swap_blocks])
def test_a_mutated_host_pool_is_noticed(mutate: Callable[[torch.Tensor], torch.Tensor]) -> None:
    world = World(Plan(Layout(pp=4), Layout(tp=4)), layers=5, kv_heads=4)
    whole = world.truth(3, seed=2)
    world.place(0, 0, [0, 1, 2], whole)
    world.swap(0, 0, True, [0, 1, 2], [3, 4, 5])
    world.swap(1, 0, False, [3, 4, 5], [3, 4, 5])
    assert world.holds(1, 0, [3, 4, 5], whole)
    blocks = world.host._blocks
    blocks[3:6] = mutate(blocks[3:6]).clone()
    world.swap(1, 0, False, [3, 4, 5], [3, 4, 5])
    assert not world.holds(1, 0, [3, 4, 5], whole)


def test_a_swap_touches_no_other_block() -> None:
    world = World(Plan(Layout(pp=2), Layout(tp=2)), layers=3, kv_heads=2)
    world.place(0, 0, [1, 4], world.truth(2, seed=3))
    world.swap(0, 0, True, [1, 4], [7, 0])
    assert sorted(set(range(NUM_HOST_BLOCKS)) - {0, 7}) == [
        block for block in range(NUM_HOST_BLOCKS) if bool(world.host._blocks[block].isnan().all())
    ]
    world.swap(1, 0, False, [2], [7])
    for pool in world.pools:
        untouched = pool.view(1)[[0, 3, 5]]
        assert bool(untouched.isnan().all())


@pytest.mark.parametrize(("device", "host"), [([6], [0]), ([-1], [0]), ([0], [9]), ([0], [-1])])
def test_blocks_that_are_not_there_are_refused(device: list[int], host: list[int]) -> None:
    world = World(Plan(Layout(pp=2), Layout(tp=2)), layers=3, kv_heads=2)
    with pytest.raises(IndexError, match="the pool has"):
        world.swap(0, 0, True, device, host)


def test_a_swap_pairs_its_blocks() -> None:
    world = World(Plan(Layout(pp=2), Layout(tp=2)), layers=3, kv_heads=2)
    with pytest.raises(ValueError, match="pairs 2 with 1 blocks"):
        world.swap(0, 0, True, [0, 1], [0])


def test_a_block_is_the_same_bytes_in_every_layout() -> None:
    """Uneven stages: the stride is the larger rectangle, and no view reaches into the next block."""
    geometry = KVGeometry(tiny_shape(layers=5, kv_heads=2), Plan(Layout(pp=2), Layout(tp=2)), block_size=4)
    for rank in (0, 1):
        pool = DevicePool(geometry, rank, 3, CPU)
        for layout in (0, 1):
            view = pool.view(layout)
            span = geometry.device_block_bytes(rank)
            assert view[1].data_ptr() - view[0].data_ptr() == span
            assert view[0].is_contiguous() and view[0].nbytes <= span
            assert [layer.data_ptr() for layer in pool.layers(layout)] == [
                view[:, n].data_ptr() for n in range(len(view[0]))
            ]


def test_swaps_run_in_order_and_report_seconds_and_bytes() -> None:
    world = World(Plan(Layout(pp=2), Layout(tp=2)), layers=4, kv_heads=2)
    whole = world.truth(2, seed=4)
    world.place(0, 0, [0, 1], whole)
    reports: list[Report] = []
    copies = ThreadCopies(0, world.copiers[0], reports.append, lambda error: None)
    copies.submit(Swap(5, 0, 0, True, [0, 1], [3, 4]))
    copies.submit(Swap(6, 0, 0, False, [2, 3], [3, 4]))  # reads what the one before wrote
    copies.close()
    assert [report.id for report in reports] == [5, 6]
    assert all(report.rank == 0 and report.seconds > 0 for report in reports)
    assert [report.bytes for report in reports] == [world.geometry.host_block_bytes] * 2  # half of two blocks
    assert torch.equal(world.pools[0].view(0)[[2, 3]], world.part(0, 0, whole))


def test_a_failing_swap_is_told() -> None:
    world = World(Plan(Layout(pp=2), Layout(tp=2)), layers=4, kv_heads=2)
    errors: list[BaseException] = []
    copies = ThreadCopies(0, world.copiers[0], lambda report: None, errors.append)
    copies.submit(Swap(5, 0, 0, True, [99], [0]))
    copies.close()
    assert isinstance(errors[0], IndexError)
