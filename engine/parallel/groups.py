"""Communication between the ranks of one layout, as values. One process holds those of several layouts.

All groups of all layouts are built and warmed once, at the start of a worker (`join_world`, `build_groups`),
so that a transition creates nothing. Point-to-point sends never block: two gloo sends that face each other
hang, from 1 kB on. Each kind of traffic has its own communicator, so one never waits behind another.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from engine.parallel.layout import Coord, Layout

Group = Any  # a torch.distributed process group

TIMEOUT_S = 600.0  # for a peer that does not come


class TensorGroup(ABC):
    """The tensor-parallel shards of one stage. With one shard, every operation is the identity."""

    size: int
    shard: int

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the shards, in place; returns `x`."""

    @abstractmethod
    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        """Concatenate the shards' `[rows, columns]` along columns, on shard 0; None on the others."""


class SingleShard(TensorGroup):
    """A stage of one shard."""

    size = 1
    shard = 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        return x


class ShardGroup(TensorGroup):
    """The shards of a stage, over torch.distributed. `ranks` are in shard order."""

    def __init__(self, ranks: Sequence[int], shard: int, group: Group) -> None:
        self.size = len(ranks)
        self.shard = shard
        self.ranks = tuple(ranks)
        self.process_group = group

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x, group=self.process_group)
        return x

    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)] if self.shard == 0 else None
        dist.gather(x, parts, dst=self.ranks[0], group=self.process_group)
        return torch.cat(parts, dim=-1) if parts is not None else None


class _Sends:
    """Sends under way; keeps their tensors alive.

    gloo learns that a send is done only in `wait`, so the oldest is waited for once `limit` newer ones are
    under way. With at most pp + 1 steps in flight that send was received long ago; and were it not, its
    receiver needs nothing newer from this rank to get to it, so the wait ends in any case.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._works: deque[tuple[torch.Tensor, list[dist.Work]]] = deque()

    def add(self, tensor: torch.Tensor, to: Sequence[int], group: Group) -> None:
        works = [work for rank in to if (work := dist.isend(tensor, rank, group=group)) is not None]
        self._works.append((tensor, works))
        while len(self._works) > self._limit:
            self._wait_oldest()

    def drain(self) -> None:
        while self._works:
            self._wait_oldest()

    def _wait_oldest(self) -> None:
        _, works = self._works.popleft()
        for work in works:
            work.wait()


class Incoming:
    """A tensor on its way to this rank.

    gloo needs the receive posted before the sender waits. NCCL does not: it buffers at the receiver what is sent
    early, and a receive is a kernel, which holds multiprocessors until its data comes. Matrix products that fill
    the device then need two waves instead of one. So on CUDA the receive starts when its data is wanted.
    """

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, device: torch.device, source: int, group: Group
    ) -> None:
        self._source = source
        self._group = group
        self._tensor = torch.empty(shape, dtype=dtype, device=device)
        self._work: dist.Work | None = None
        if device.type == "cpu":
            self._work = dist.irecv(self._tensor, source, group=group)

    def wait(self) -> torch.Tensor:
        """The tensor, once it is here (on CUDA, for what is launched behind this call). Call it once, in order."""
        if self._work is None:
            dist.recv(self._tensor, self._source, group=self._group)
        else:
            self._work.wait()
        return self._tensor


class Pipe:
    """Hidden states from this rank's previous stage and to its next one (same shard, same replica).

    Each neighbour has a communicator of its own: NCCL runs the messages of one communicator in order, so a receive
    would wait behind a send whose receiver is still busy.
    """

    def __init__(
        self, previous: int | None, following: int | None, group_in: Group, group_out: Group, in_flight: int
    ) -> None:
        self._previous = previous
        self._following = following
        self._group_in = group_in
        self._group_out = group_out
        self._sends = _Sends(in_flight)

    @property
    def is_first(self) -> bool:
        return self._previous is None

    @property
    def is_last(self) -> bool:
        return self._following is None

    def post(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Incoming:
        """Expect a tensor from the previous stage. Tensors arrive in the order in which they were sent."""
        assert self._previous is not None, "the first stage receives from nobody"
        return Incoming(shape, dtype, device, self._previous, self._group_in)

    def send(self, x: torch.Tensor) -> None:
        """Send to the next stage without waiting. The caller must not write `x` afterwards."""
        assert self._following is not None, "the last stage sends to nobody"
        self._sends.add(x.contiguous(), [self._following], self._group_out)

    def drain(self) -> None:
        """Wait until all that was sent has been received."""
        self._sends.drain()


class PendingTokens(Protocol):
    """Sampled tokens on their way to a first-stage rank: `Incoming`, or a test's."""

    def wait(self) -> torch.Tensor:
        """The tokens, int64 [rows], once they are here."""


class Feedback:
    """Sampled tokens from a replica's sampling rank to all ranks of its first stage.

    A first-stage rank posts its receive right after its part of the step and waits only when a later step
    reads one of the tokens, so the sampling rank never finds nobody receiving.
    """

    def __init__(self, rank: int, sampler: int, first_stage: Sequence[int], group: Group, in_flight: int) -> None:
        self.is_sampler = rank == sampler
        self.is_first_stage = rank in first_stage
        self._sampler = sampler
        self._to = [other for other in first_stage if other != sampler]
        self._group = group
        self._sends = _Sends(in_flight)

    def send(self, tokens: torch.Tensor) -> None:
        """From the sampling rank to every other rank that needs them: int64 [rows]. Does not wait."""
        if self._to:
            self._sends.add(tokens, self._to, self._group)

    def post(self, rows: int, device: torch.device) -> PendingTokens:
        """Expect `rows` tokens of the step just dispatched; on a first-stage rank that does not sample."""
        return Incoming((rows,), torch.int64, device, self._sampler, self._group)

    def drain(self) -> None:
        """Wait until all that was sent has been received."""
        self._sends.drain()


@dataclass(frozen=True)
class LayoutGroups:
    """One rank's communication in one layout."""

    layout: Layout
    coord: Coord
    tensor: TensorGroup
    pipe: Pipe
    feedback: Feedback

    def drain(self) -> None:
        self.pipe.drain()
        self.feedback.drain()


def join_world(
    rank: int, world_size: int, rendezvous: Path, device: torch.device, timeout_s: float = TIMEOUT_S
) -> None:
    """Enter the world of `world_size` workers. `rendezvous` is a file in a private folder that all share."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one host; never listen on the network
    timeout = timedelta(seconds=timeout_s)
    store = dist.FileStore(str(rendezvous), world_size)  # type: ignore[attr-defined]
    store.set_timeout(timeout)
    if device.type == "cuda":
        os.environ["NCCL_NVLS_ENABLE"] = "0"  # no NVLink multicast: see `engine.parallel.peers`
        # This one ends a process whose NCCL watchdog hangs for eight minutes, as behind a long call of the driver.
        os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")
        dist.init_process_group(
            "nccl", store=store, rank=rank, world_size=world_size, device_id=device, timeout=timeout
        )
    else:
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)


def build_groups(
    rank: int, layouts: Sequence[Layout], device: torch.device, timeout_s: float = TIMEOUT_S
) -> list[LayoutGroups]:
    """This rank's groups of every layout, warm. Collective: all ranks call it with the same layouts.

    An operation that takes longer than `timeout_s` ends the process: gloo raises, torch's watchdog over NCCL aborts
    (and does not see into CUDA graphs). Whoever started the workers should have given them up before.
    """
    groups = [_layout_groups(rank, layout, timedelta(seconds=timeout_s)) for layout in layouts]
    for layout_groups in groups:
        _warm(layout_groups, device)
    dist.barrier()
    return groups


def _layout_groups(rank: int, layout: Layout, timeout: timedelta) -> LayoutGroups:
    # new_group is collective: every rank makes every group of the layout, in one order.
    coord = layout.coord(rank)
    tensor: TensorGroup = SingleShard()
    for replica in range(layout.dp):
        for stage in range(layout.pp):
            ranks = layout.stage_ranks(replica, stage)
            group = _new_group(ranks, timeout)
            if rank in ranks and layout.tp > 1:
                tensor = ShardGroup(ranks, coord.shard, group)
    edges: dict[tuple[int, int], Group] = {}  # this rank's, from a stage to the next
    for replica in range(layout.dp):
        for shard in range(layout.tp):
            for stage in range(layout.pp - 1):
                ends = layout.rank(replica, stage, shard), layout.rank(replica, stage + 1, shard)
                group = _new_group(ends, timeout)
                if rank in ends:
                    edges[ends] = group
    back: Group = None
    for replica in range(layout.dp):
        ranks_of_feedback = sorted({layout.sampling_rank(replica), *layout.stage_ranks(replica, 0)})
        group = _new_group(ranks_of_feedback, timeout)
        if rank in ranks_of_feedback:
            back = group
    replica, stage, shard = coord
    previous = layout.rank(replica, stage - 1, shard) if stage > 0 else None
    following = layout.rank(replica, stage + 1, shard) if stage + 1 < layout.pp else None
    pipe = Pipe(
        previous=previous,
        following=following,
        group_in=None if previous is None else edges[previous, rank],
        group_out=None if following is None else edges[rank, following],
        in_flight=layout.max_in_flight,
    )
    sampler, first_stage = layout.sampling_rank(replica), layout.stage_ranks(replica, 0)
    feedback = Feedback(rank, sampler, first_stage, back, layout.max_in_flight)
    return LayoutGroups(layout, coord, tensor, pipe, feedback)


def _new_group(ranks: Sequence[int], timeout: timedelta) -> Group:
    return dist.new_group(list(ranks), timeout=timeout) if len(ranks) > 1 else None  # it does not take the world's


def _warm(groups: LayoutGroups, device: torch.device) -> None:
    """One tiny operation over every connection, so that the first step pays for none."""
    one = torch.ones(1, 1, device=device)
    groups.tensor.gather_last(groups.tensor.all_reduce(one.clone()))
    if not groups.pipe.is_first:
        groups.pipe.post(one.shape, one.dtype, device).wait()
    if not groups.pipe.is_last:
        groups.pipe.send(one)
    if groups.feedback.is_sampler:
        groups.feedback.send(torch.zeros(1, dtype=torch.int64, device=device))
    elif groups.feedback.is_first_stage:
        groups.feedback.post(1, device).wait()
    groups.drain()
