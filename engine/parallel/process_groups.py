"""Communication between ranks over torch.distributed: NCCL, between GPUs. Made by the worker for `build_groups`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from seesaw.engine.parallel.groups import TIMEOUT_S, Link, Links, Pending, SingleShard, TensorGroup

Group = Any  # a torch.distributed process group


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


class ProcessLink(Link):
    """A communicator of its own: NCCL runs the messages of one communicator in order, so a receive would wait behind a
    send whose receiver is still busy."""

    def __init__(self, sender: int, receivers: Sequence[int], group: Group, in_flight: int) -> None:
        self._sender = sender
        self._receivers = receivers
        self._group = group
        self._in_flight = in_flight
        self._sends: deque[tuple[torch.Tensor, list[dist.Work]]] = deque()  # keeps their tensors alive

    def send(self, x: torch.Tensor) -> None:
        # A send may be known to be done only once it was waited for, so the oldest is as soon as `in_flight` newer ones
        # are under way. With at most pp + 1 steps in flight that send was received long ago; and were it not, its
        # receiver needs nothing newer from this rank to get to it, so the wait ends in any case.
        x = x.contiguous()
        works = [work for rank in self._receivers if (work := dist.isend(x, rank, group=self._group)) is not None]
        self._sends.append((x, works))
        while len(self._sends) > self._in_flight:
            self._wait_oldest()

    def post(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Pending:
        return Incoming(torch.empty(shape, dtype=dtype, device=device), self._sender, self._group)

    def drain(self) -> None:
        while self._sends:
            self._wait_oldest()

    def _wait_oldest(self) -> None:
        _, works = self._sends.popleft()
        for work in works:
            work.wait()


class Incoming(Pending):
    """A tensor that NCCL brings.

    The receive starts when its data is wanted: NCCL buffers at the receiver what is sent early, and a receive is a
    kernel, which holds multiprocessors until its data comes. Matrix products that fill the device then need two waves
    instead of one.
    """

    def __init__(self, x: torch.Tensor, sender: int, group: Group) -> None:
        self._x = x
        self._sender = sender
        self._group = group

    def wait(self) -> torch.Tensor:
        dist.recv(self._x, self._sender, group=self._group)
        return self._x


class ProcessLinks(Links):
    """Makes process groups, which is collective: every rank makes them all.

    An operation that takes longer than `timeout_s` ends the process: torch's watchdog over NCCL aborts (and does not
    see into CUDA graphs). Whoever started the workers should have given them up before.
    """

    def __init__(self, rank: int, timeout_s: float = TIMEOUT_S) -> None:
        self._rank = rank
        self._timeout = timedelta(seconds=timeout_s)

    def shards(self, ranks: Sequence[int]) -> TensorGroup:
        group = self._group(ranks)
        if group is None or self._rank not in ranks:
            return SingleShard()
        return ShardGroup(ranks, ranks.index(self._rank), group)

    def pipe(self, stage: int, following: int, in_flight: int) -> Link | None:
        return self._link(stage, [following], in_flight)

    def feedback(self, sampler: int, others: Sequence[int], in_flight: int) -> Link | None:
        return self._link(sampler, others, in_flight)

    def _link(self, sender: int, receivers: Sequence[int], in_flight: int) -> Link | None:
        group = self._group(sorted([sender, *receivers]))
        if group is None or self._rank not in (sender, *receivers):
            return None
        return ProcessLink(sender, receivers, group, in_flight)

    def _group(self, ranks: Sequence[int]) -> Group:
        # It does not take the world's timeout.
        return dist.new_group(list(ranks), timeout=self._timeout) if len(ranks) > 1 else None
