"""A rank's KV pool: one allocation, one view of it for each layout. Used by the runner and the copies."""

from __future__ import annotations

import math

import torch

from seesaw.engine.kv.geometry import KVGeometry


class DevicePool:
    """`num_blocks` blocks, each the rank's rectangle `[own layers, own KV heads, 2, T, D]`.

    A block id names one byte span in every layout: the stride is the rank's largest rectangle. So a
    sequence keeps its blocks through a layout change, but their bytes mean something only in the layout
    that wrote them.

    Behind them lies one block more, `padding_block`, which is nobody's: rows that only pad a batch write there.
    """

    def __init__(self, geometry: KVGeometry, rank: int, num_blocks: int, device: torch.device) -> None:
        self.num_blocks = num_blocks
        self.padding_block = num_blocks
        self.device = device
        dtype: torch.dtype = getattr(torch, geometry.shape.kv_dtype)
        stride = geometry.device_block_bytes(rank) // dtype.itemsize
        num_bytes = geometry.device_pool_bytes(rank, num_blocks)
        self._memory = torch.empty(num_bytes // dtype.itemsize, dtype=dtype, device=device)
        if dtype.itemsize == 1:
            # Kernels in 8 bits multiply whole blocks and weigh with 0 what nobody has written: it must not be NaN.
            self._memory.view(torch.uint8).zero_()
        self._views = []
        for layout in geometry.plan.layouts:
            extent = geometry.extents(layout)[rank]
            sizes = (len(extent.layers), len(extent.slices), 2, geometry.block_size, geometry.shape.head_dim)
            strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
            self._views.append(self._memory.as_strided((num_blocks + 1, *sizes), (stride, *strides)))

    def view(self, layout_index: int) -> torch.Tensor:
        """`[blocks + 1, own layers, own KV heads, 2, T, D]` of the plan's layout; contiguous within a block."""
        return self._views[layout_index]

    def layers(self, layout_index: int) -> list[torch.Tensor]:
        """What the operators take: a view `[blocks + 1, own KV heads, 2, T, D]` for each own layer."""
        return list(self._views[layout_index].unbind(1))

    def touch(self, num_blocks: int) -> None:
        """Have the first blocks in memory: a host maps what was never written to one page, which lies in its cache."""
        self._memory[: num_blocks * self._views[0].stride(0)].zero_()

    def poison(self) -> None:
        """Fill with NaN, or the largest of 8 bits, so that a test sees any read of what was never written."""
        is_small = self._memory.dtype.itemsize == 1
        self._memory.view(torch.uint8).fill_(0x7E if is_small else 0xFF)  # 448 in e4m3; NaN in every float type
