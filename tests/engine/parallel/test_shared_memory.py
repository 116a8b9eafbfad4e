"""Links through shared memory, between threads: each has its own semaphores and slots, as a process has."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from seesaw.engine.parallel.groups import Link, SingleShard, TensorGroup
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.parallel.shared_memory import SharedLink, SharedLinks, SharedShards
from seesaw.engine.parallel.shared_sizes import LINE_BYTES, PIECE_BYTES, link_bytes, shards_bytes, shared_bytes
from tests.patience import PATIENCE_S

CPU = torch.device("cpu")
PIECE = PIECE_BYTES // 4  # of float32


def make_shards(size: int) -> list[SharedShards]:
    memory = torch.zeros(shards_bytes(size), dtype=torch.uint8)
    return [SharedShards(size, shard, memory) for shard in range(size)]


def make_link(num_receivers: int, num_slots: int, slot_bytes: int) -> tuple[SharedLink, list[SharedLink]]:
    memory = torch.zeros(link_bytes(num_receivers, num_slots, slot_bytes), dtype=torch.uint8)
    sender, *receivers = (
        SharedLink(num_receivers, num_slots, slot_bytes, memory, me) for me in range(-1, num_receivers)
    )
    return sender, receivers


def together(*calls: Callable[[], Any]) -> list[Any]:
    """All at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result(PATIENCE_S) for future in [threads.submit(call) for call in calls]]


def part(size: int, shard: int, number: int, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * number + shard)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float32).to(dtype)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sums_and_gathers_in_any_order(size: int) -> None:
    """Hundreds of rounds of random kinds and sizes, of which no shard but the first waits in a gather."""
    choice = random.Random(size)
    rounds = [
        (
            choice.random() < 0.7,
            choice.randrange(1, 20),
            choice.choice([1, 2, 577, 4096]),
            choice.choice([torch.float32, torch.bfloat16, torch.float64]),
        )
        for _ in range(300)
    ]

    def run(group: TensorGroup) -> list[torch.Tensor | None]:
        results = []
        for number, (is_sum, rows, columns, dtype) in enumerate(rounds):
            x = part(size, group.shard, number, rows, columns, dtype)
            results.append(group.all_reduce(x) if is_sum else group.gather_last(x))
        return results

    first, *others = together(*(lambda group=group: run(group) for group in make_shards(size)))
    for number, (is_sum, rows, columns, dtype) in enumerate(rounds):
        parts = [part(size, shard, number, rows, columns, dtype) for shard in range(size)]
        if is_sum:
            expected = parts[0] + parts[1]
            for another in parts[2:]:
                expected += another
            assert all(torch.equal(expected, result[number]) for result in (first, *others))  # the same bits
        else:
            assert torch.equal(torch.cat(parts, dim=-1), first[number])
            assert all(result[number] is None for result in others)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("columns", [PIECE, PIECE + 1, 3 * PIECE + 17])
def test_tensors_of_several_pieces(size: int, columns: int) -> None:
    parts = [part(size, shard, 0, 1, columns, torch.float32) for shard in range(size)]

    def run(group: TensorGroup) -> tuple[torch.Tensor, torch.Tensor | None]:
        return group.all_reduce(parts[group.shard].clone()), group.gather_last(parts[group.shard])

    results = together(*(lambda group=group: run(group) for group in make_shards(size)))
    for summed, _ in results:
        torch.testing.assert_close(summed, sum(parts[1:], parts[0]))
    assert torch.equal(results[0][1], torch.cat(parts, dim=-1))


def test_sums_take_what_a_step_gives() -> None:
    """No rows at all, and columns that are not contiguous in a gather."""

    def run(group: TensorGroup) -> tuple[torch.Tensor, torch.Tensor | None]:
        return group.all_reduce(torch.zeros(0, 8)), group.gather_last(torch.arange(6.0).view(2, 3)[:, :2])

    (summed, gathered), _ = together(*(lambda group=group: run(group) for group in make_shards(2)))
    assert summed.shape == (0, 8)
    assert gathered.tolist() == [[0, 1, 0, 1], [3, 4, 3, 4]]


@pytest.mark.parametrize("size", [2, 4])
def test_nobody_overtakes_a_late_shard(size: int) -> None:
    """The others wait in their first sum, whose parts are there for the late one."""
    shards = make_shards(size)
    done: list[list[float]] = [[] for _ in shards]

    def run(group: TensorGroup) -> None:
        for number in range(3):
            done[group.shard].append(group.all_reduce(torch.tensor([[10.0**group.shard * (number + 1)]])).item())

    with ThreadPoolExecutor(size) as threads:
        early = [threads.submit(run, group) for group in shards[1:]]
        assert done == [[] for _ in shards]
        late = threads.submit(run, shards[0])
        for future in (*early, late):
            future.result(PATIENCE_S)
    ones = float("1" * size)
    assert done == [[ones, 2 * ones, 3 * ones]] * size


@pytest.mark.parametrize("num_receivers", [1, 2, 3])
def test_a_link_keeps_order_and_never_overwrites(num_receivers: int) -> None:
    """Many more tensors than slots, some larger than a slot or all of them, to receivers of different speed."""
    choice = random.Random(num_receivers)
    sender, receivers = make_link(num_receivers, num_slots=3, slot_bytes=1000)
    sizes = [choice.choice([1, 7, 250, 251, 2000]) for _ in range(300)]
    sent = [torch.randn(1, size) for size in sizes]

    def send() -> None:
        for x in sent:
            sender.send(x)

    def receive(link: Link) -> list[torch.Tensor]:
        return [link.post((1, size), torch.float32, CPU).wait() for size in sizes]

    _, *received = together(send, *(lambda link=link: receive(link) for link in receivers))
    for tensors in received:
        assert all(torch.equal(x, y) for x, y in zip(sent, tensors, strict=True))


def test_as_many_sends_as_slots_wait_for_nobody() -> None:
    sender, (receiver,) = make_link(1, num_slots=5, slot_bytes=800)
    for step in range(5):
        sender.send(torch.full((100,), step))
    sender.drain()
    assert [receiver.post((100,), torch.int64, CPU).wait()[99].item() for _ in range(5)] == [0, 1, 2, 3, 4]


def test_what_was_sent_may_be_written_again() -> None:
    sender, (receiver,) = make_link(1, num_slots=1, slot_bytes=64)
    x = torch.ones(3)
    sender.send(x)
    x.zero_()
    received = receiver.post((3,), torch.float32, CPU).wait()
    sender.send(x)
    assert received.tolist() == [1, 1, 1]


@pytest.mark.parametrize("texts", [["T1"], ["T2"], ["P2"], ["P4", "T4", "T2P2"], ["D2T2", "D2P2", "D4"], ["T3", "P3"]])
def test_all_of_the_memory_is_handed_out(texts: list[str]) -> None:
    """To each rank at the same places, whatever it is part of."""
    layouts = [Layout.parse(text) for text in texts]
    memory = torch.zeros(shared_bytes(layouts, 1001, 24), dtype=torch.uint8)
    for rank in range(layouts[0].world_size):
        links = SharedLinks(rank, layouts, 1001, 24, memory)
        for layout in layouts:
            for replica in range(layout.dp):
                for stage in range(layout.pp):
                    ranks = layout.stage_ranks(replica, stage)
                    group = links.shards(ranks)
                    assert isinstance(group, SingleShard) == (rank not in ranks or layout.tp == 1)
                for _ in range(layout.tp * (layout.pp - 1)):
                    links.pipe(0, 1, layout.max_in_flight)
                sampler = layout.sampling_rank(replica)
                others = [other for other in layout.stage_ranks(replica, 0) if other != sampler]
                link = links.feedback(sampler, others, layout.max_in_flight)
                assert (link is None) == (not others or rank not in (sampler, *others))
        with pytest.raises(ValueError, match="ends"):
            links.pipe(0, 1, 1)


def test_semaphores_share_no_cache_line() -> None:
    assert shards_bytes(2) % LINE_BYTES == link_bytes(3, 2, 1001) % LINE_BYTES == 0
