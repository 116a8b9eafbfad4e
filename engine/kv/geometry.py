"""Shapes and byte counts of the two KV pools; pure arithmetic, no torch.

One block shape everywhere: `block[layer, kv_head, 2 (k|v), token, head_dim]`. The host pool holds whole
blocks, a rank's device pool its rectangle of each. A device block id names one byte span in every layout:
the stride is the rank's larger rectangle over the plan's layouts.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.parallel.moves import Axis, Extent, extents, stage_layers


@dataclass(frozen=True)
class KVGeometry:
    """Where every rank's part of a block lies, in every layout of a plan."""

    shape: ModelShape
    plan: Plan
    block_size: int  # tokens

    @property
    def axis(self) -> Axis:
        return Axis("kv_heads", self.shape.num_kv_heads)

    @property
    def cell_bytes(self) -> int:
        """One layer and one KV head of a block: K then V, contiguous in both pools."""
        return 2 * self.block_size * self.shape.head_dim * self.shape.kv_dtype_bytes

    @property
    def host_block_bytes(self) -> int:
        return self.shape.num_layers * self.shape.num_kv_heads * self.cell_bytes

    def extents(self, layout: Layout) -> list[Extent]:
        """Each rank's rectangle (decoder layers x KV heads) of a block, by rank."""
        return extents(layout, stage_layers(self.shape.num_layers, layout.pp), self.axis)

    def device_block_bytes(self, rank: int) -> int:
        """Stride of a rank's device pool. What the smaller layouts leave of it is padding."""
        return max(self.extents(layout)[rank].size for layout in self.plan.layouts) * self.cell_bytes

    def device_pool_bytes(self, rank: int, num_blocks: int) -> int:
        """All of a rank's device pool of so many blocks: behind them lies one more, for rows that only pad a batch."""
        return (num_blocks + 1) * self.device_block_bytes(rank)

    @property
    def max_device_block_bytes(self) -> int:
        return max(self.device_block_bytes(rank) for rank in range(self.plan.world_size))

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)
