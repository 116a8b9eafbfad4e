"""Communication between the ranks of one layout, as values. One process holds those of several layouts.

All groups of all layouts are built and warmed once, at the start of a worker (`join_world`, `build_groups`),
so that a transition creates nothing. Sends never wait for their receiver. Each kind of traffic has its own link, so one
never waits behind another. What carries it is `Links`: torch.distributed, or memory that the ranks share.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist

from seesaw.engine.parallel.layout import Coord, Layout

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


class Pending(Protocol):
    """A tensor on its way to this rank."""

    def wait(self) -> torch.Tensor:
        """The tensor, once it is here (on CUDA, for what is launched behind this call). Call it once, in order."""


class Link(ABC):
    """Carries tensors from one rank to one or several others, in the order in which they are sent."""

    @abstractmethod
    def send(self, x: torch.Tensor) -> None:
        """Send without waiting. The caller must not write `x` afterwards."""

    @abstractmethod
    def post(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Pending:
        """Expect the next tensor; on a rank that receives."""

    @abstractmethod
    def drain(self) -> None:
        """Wait until all that was sent can do without this rank."""


class Links(ABC):
    """Makes what carries one rank's traffic.

    Collective: all ranks ask for the same groups and links in the same order, also for those that they are not part of.
    """

    @abstractmethod
    def shards(self, ranks: Sequence[int]) -> TensorGroup:
        """The shards of a stage, in shard order. Of no use to other ranks."""

    @abstractmethod
    def pipe(self, stage: int, following: int, in_flight: int) -> Link | None:
        """From a rank to that of the next stage, with the hidden states of so many steps under way. None for others."""

    @abstractmethod
    def feedback(self, sampler: int, others: Sequence[int], in_flight: int) -> Link | None:
        """From a sampling rank to first-stage ranks, if any, with the tokens of so many steps under way."""


class Pipe:
    """Hidden states from this rank's previous stage and to its next one (same shard, same replica)."""

    def __init__(self, previous: Link | None, following: Link | None) -> None:
        self._previous = previous
        self._following = following

    @property
    def is_first(self) -> bool:
        return self._previous is None

    @property
    def is_last(self) -> bool:
        return self._following is None

    def post(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Pending:
        """Expect a tensor from the previous stage. Tensors arrive in the order in which they were sent."""
        assert self._previous is not None, "the first stage receives from nobody"
        return self._previous.post(shape, dtype, device)

    def send(self, x: torch.Tensor) -> None:
        """Send to the next stage without waiting. The caller must not write `x` afterwards."""
        assert self._following is not None, "the last stage sends to nobody"
        self._following.send(x)

    def drain(self) -> None:
        """Wait until all that was sent can do without this rank."""
        if self._following is not None:
            self._following.drain()


class Feedback:
    """Sampled tokens from a replica's sampling rank to all ranks of its first stage.

    A first-stage rank posts its receive right after its part of the step and waits only when a later step
    reads one of the tokens, so the sampling rank never finds nobody receiving.
    """

    def __init__(self, is_sampler: bool, is_first_stage: bool, link: Link | None) -> None:
        """`link`: None where nobody but the sampling rank needs the tokens."""
        self.is_sampler = is_sampler
        self.is_first_stage = is_first_stage
        self._link = link

    def send(self, tokens: torch.Tensor) -> None:
        """From the sampling rank to every other rank that needs them: int64 [rows]. Does not wait."""
        if self._link is not None:
            self._link.send(tokens)

    def post(self, rows: int, device: torch.device) -> Pending:
        """Expect `rows` tokens of the step just dispatched; on a first-stage rank that does not sample."""
        assert self._link is not None, "the sampling rank has its tokens already"
        return self._link.post((rows,), torch.int64, device)

    def drain(self) -> None:
        """Wait until all that was sent can do without this rank."""
        if self._link is not None and self.is_sampler:
            self._link.drain()


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


def build_groups(rank: int, layouts: Sequence[Layout], links: Links, device: torch.device) -> list[LayoutGroups]:
    """This rank's groups of every layout, warm. Collective: all ranks call it with the same layouts."""
    groups = [_layout_groups(rank, layout, links) for layout in layouts]
    dist.barrier()  # what carries them is complete
    for layout_groups in groups:
        _warm(layout_groups, device)
    dist.barrier()
    return groups


def _layout_groups(rank: int, layout: Layout, links: Links) -> LayoutGroups:
    # Every rank asks for everything of the layout, in one order.
    tensor: TensorGroup = SingleShard()
    for replica in range(layout.dp):
        for stage in range(layout.pp):
            ranks = layout.stage_ranks(replica, stage)
            shards = links.shards(ranks)
            if rank in ranks:
                tensor = shards
    previous: Link | None = None
    following: Link | None = None
    for replica in range(layout.dp):
        for shard in range(layout.tp):
            for stage in range(layout.pp - 1):
                sender, receiver = layout.rank(replica, stage, shard), layout.rank(replica, stage + 1, shard)
                link = links.pipe(sender, receiver, layout.max_in_flight)
                if rank == sender:
                    following = link
                if rank == receiver:
                    previous = link
    back: Link | None = None
    for replica in range(layout.dp):
        sampler, first_stage = layout.sampling_rank(replica), layout.stage_ranks(replica, 0)
        others = [other for other in first_stage if other != sampler]
        link = links.feedback(sampler, others, layout.max_in_flight)
        if rank in (sampler, *others):
            back = link
    coord = layout.coord(rank)
    feedback = Feedback(rank == layout.sampling_rank(coord.replica), coord.stage == 0, back)
    return LayoutGroups(layout, coord, tensor, Pipe(previous, following), feedback)


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
