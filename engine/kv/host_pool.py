"""The KV pool in shared host memory: whole blocks, whoever wrote them. Used by the copies of every rank."""

from __future__ import annotations

import torch

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.parallel.moves import Extent


class HostPool:
    """`[blocks, all layers, all KV heads, 2, T, D]` over a flat uint8 tensor of at least that size."""

    def __init__(self, geometry: KVGeometry, num_blocks: int, memory: torch.Tensor) -> None:
        self.num_blocks = num_blocks
        shape = geometry.shape
        dtype: torch.dtype = getattr(torch, shape.kv_dtype)
        block = (shape.num_layers, shape.num_kv_heads, 2, geometry.block_size, shape.head_dim)
        used = memory[: num_blocks * geometry.host_block_bytes]
        self._blocks = used.view(dtype).view(num_blocks, *block)

    def view(self, extent: Extent) -> torch.Tensor:
        """A rank's rectangle of every block: `[blocks, its layers, its KV heads, 2, T, D]`."""
        return self._blocks[:, extent.layers.within(0), extent.slices.within(0)]

    def poison(self) -> None:
        """Fill with NaN, so that a test sees any read of what was never written."""
        self._blocks.view(torch.uint8).fill_(0xFF)  # NaN in every float type
