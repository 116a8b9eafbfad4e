"""Copies between a rank's device pool and the host pool: what `Swap` commands ask for. Used by the worker.

A swap copies the rank's rectangle of each block, both ways, whoever wrote it and whoever reads it: together
a swap-out in one layout and a swap-in in another re-shard the KV.
"""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from seesaw.engine.kv.device_pool import DevicePool
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.kv.host_pool import HostPool
from seesaw.engine.wire.commands import Report, Swap


class BlockCopier:
    """Carries out one swap of one rank, at once. Raises IndexError for a block that is not there."""

    def __init__(self, geometry: KVGeometry, rank: int, device: DevicePool, host: HostPool) -> None:
        self._device = device
        self._host = host
        extents = [geometry.extents(layout)[rank] for layout in geometry.plan.layouts]
        self._writer = [extent.writer for extent in extents]
        self._host_views = [host.view(extent) for extent in extents]
        self._block_bytes = [extent.size * geometry.cell_bytes for extent in extents]

    @property
    def num_blocks(self) -> int:
        """Of the smaller pool."""
        return min(self._device.num_blocks, self._host.num_blocks)

    def copy(self, swap: Swap) -> int:
        """Returns the bytes moved: none if another rank writes this one's copy of a shared KV head."""
        _check(swap.device_blocks, self._device.num_blocks, "device")
        _check(swap.host_blocks, self._host.num_blocks, "host")
        if len(swap.device_blocks) != len(swap.host_blocks):
            raise ValueError(f"swap {swap.id} pairs {len(swap.device_blocks)} with {len(swap.host_blocks)} blocks")
        if not swap.device_blocks or (swap.to_host and not self._writer[swap.layout]):
            return 0
        self._copy_blocks(swap, self._device.view(swap.layout), self._host_views[swap.layout])
        return len(swap.device_blocks) * self._block_bytes[swap.layout]

    def _copy_blocks(self, swap: Swap, device: torch.Tensor, host: torch.Tensor) -> None:
        # One call a block. A gather into scratch and a scatter out of it would move every byte twice.
        for device_block, host_block in zip(swap.device_blocks, swap.host_blocks, strict=True):
            if swap.to_host:
                host[host_block].copy_(device[device_block])
            else:
                device[device_block].copy_(host[host_block])


def _check(blocks: list[int], num_blocks: int, pool: str) -> None:
    if blocks and not (min(blocks) >= 0 and max(blocks) < num_blocks):
        raise IndexError(f"a swap names {pool} blocks {min(blocks)} to {max(blocks)}, the pool has {num_blocks}")


def make_copier(geometry: KVGeometry, rank: int, device: DevicePool, host: HostPool) -> BlockCopier:
    """What copies between these pools. On CUDA the host pool must be registered."""
    if device.device.type == "cuda":
        from seesaw.engine.kv.cuda_copies import CudaBlockCopier

        return CudaBlockCopier(geometry, rank, device, host)
    return BlockCopier(geometry, rank, device, host)


class Copies(ABC):
    """Executes swaps beside the forwards, in the order of submission.

    A swap is submitted after every earlier forward of this rank has been launched, and sees what they
    wrote. What comes after must not touch its blocks until all ranks have reported it (`engine.wire.commands`).
    """

    @abstractmethod
    def submit(self, swap: Swap) -> None:
        """Start a swap; never waits for it. Its completion is reported by `report`."""

    @abstractmethod
    def close(self) -> None:
        """Finish what was submitted and end. Idempotent."""


class ThreadCopies(Copies):
    """A background thread, for devices whose memory the host reads directly.

    CPU forwards are synchronous, so a swap submitted after one sees its writes. `report` and `fail` are
    called in this thread only: give them a socket of their own.
    """

    def __init__(
        self,
        rank: int,
        copier: BlockCopier,
        report: Callable[[Report], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._rank = rank
        self._copier = copier
        self._report = report
        self._fail = fail
        self._swaps: queue.SimpleQueue[Swap | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
        self._thread.start()

    def submit(self, swap: Swap) -> None:
        self._swaps.put(swap)

    def close(self) -> None:
        self._swaps.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while (swap := self._swaps.get()) is not None:
                start = time.perf_counter()
                num_bytes = self._copier.copy(swap)
                seconds = time.perf_counter() - start
                self._report(Report(self._rank, swap.id, seconds=seconds, bytes=num_bytes))
        except BaseException as error:
            self._fail(error)
