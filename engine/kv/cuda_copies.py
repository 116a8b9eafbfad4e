"""Swaps on CUDA: copy engines beside the kernels, over host memory that is registered. Used by the worker."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

import torch
from cuda.bindings import runtime

from seesaw.engine.device.moments import elapsed_s
from seesaw.engine.device.reports import EventReports
from seesaw.engine.kv.copies import BlockCopier, Copies
from seesaw.engine.wire.commands import Report, Swap

# One engine copies all that goes in one direction, first come first served: the few bytes that the next step needs on
# the device wait for all that a swap has asked for before. So it never asks for more than two such pieces.
_PIECE_BYTES = 8 << 20

_TO_HOST = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
_TO_DEVICE = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice


class CudaBlockCopier(BlockCopier):
    """Starts a swap's copies on the current stream, the last ones once the others are done; the host pool must be
    registered (`segment.register`)."""

    def _copy_blocks(self, swap: Swap, device: torch.Tensor, host: torch.Tensor) -> None:
        # A block on the device is contiguous. On the host, a row is one layer's heads, and the next row lies all
        # heads further: one strided copy moves the rectangle.
        layers, width = device.shape[1], device[0, 0].nbytes
        device_stride, host_stride = (x.stride(0) * x.itemsize for x in (device, host))
        pitch = host.stride(1) * host.itemsize
        stream = torch.cuda.current_stream().cuda_stream
        blocks_per_piece = max(1, _PIECE_BYTES // (layers * width))
        pieces: deque[torch.cuda.Event] = deque()  # under way, the oldest first
        for i, (device_block, host_block) in enumerate(zip(swap.device_blocks, swap.host_blocks, strict=True)):
            if i and i % blocks_per_piece == 0:
                pieces.append(_moment_to_wait_for())
                if len(pieces) == 2:
                    pieces.popleft().synchronize()
            on_device = device.data_ptr() + device_block * device_stride
            on_host = host.data_ptr() + host_block * host_stride
            if swap.to_host:
                copy = (on_host, pitch, on_device, width, width, layers, _TO_HOST, stream)
            else:
                copy = (on_device, width, on_host, pitch, width, layers, _TO_DEVICE, stream)
            (error,) = runtime.cudaMemcpy2DAsync(*copy)
            if error != runtime.cudaError_t.cudaSuccess:
                raise RuntimeError(f"CUDA refuses a copy of swap {swap.id}: {error.name}")


def _moment_to_wait_for() -> torch.cuda.Event:
    event = torch.cuda.Event(blocking=True)
    event.record()
    return event


class CudaCopies(Copies):
    """One lane for each direction, so that swap-ins and swap-outs share the bus both ways.

    `submit` only notes where the forwards stand; a lane's thread starts the copies behind them, one call a block,
    and another reports them. Swaps of one direction complete in order; the scheduler lets no swap wait for another.
    """

    def __init__(
        self,
        rank: int,
        copier: BlockCopier,
        device: torch.device,
        make_reports: Callable[[], EventReports],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._lanes = {to_host: _Lane(rank, copier, device, make_reports(), fail) for to_host in (True, False)}

    def submit(self, swap: Swap) -> None:
        self._lanes[swap.to_host].submit(swap)

    def close(self) -> None:
        for lane in self._lanes.values():
            lane.close()


class _Lane:
    """One stream of copies, the thread that fills it and the thread that reports them."""

    def __init__(
        self,
        rank: int,
        copier: BlockCopier,
        device: torch.device,
        reports: EventReports,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._rank = rank
        self._copier = copier
        self._device = device
        self._reports = reports
        self._fail = fail
        self._stream = torch.cuda.Stream(device)
        self._swaps: queue.SimpleQueue[tuple[Swap, torch.cuda.Event] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="copies", daemon=True)
        self._thread.start()

    def submit(self, swap: Swap) -> None:
        self._swaps.put((swap, torch.cuda.current_stream().record_event()))

    def close(self) -> None:
        self._swaps.put(None)
        self._thread.join()
        self._reports.close()

    def _run(self) -> None:
        try:
            torch.cuda.set_device(self._device)
            with torch.cuda.stream(self._stream):
                while (item := self._swaps.get()) is not None:
                    self._start(*item)
        except BaseException as error:
            self._fail(error)

    def _start(self, swap: Swap, behind: torch.cuda.Event) -> None:
        self._stream.wait_event(behind)
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        start.record()
        num_bytes = self._copier.copy(swap)
        end.record()
        self._reports.add(end, partial(_report, self._rank, swap.id, num_bytes, start, end))


def _report(rank: int, swap_id: int, num_bytes: int, start: torch.cuda.Event, end: torch.cuda.Event) -> Report:
    return Report(rank, swap_id, seconds=elapsed_s(start, end), bytes=num_bytes)
