"""Shapes and byte counts of the two KV pools; pure arithmetic, no torch.

One block shape everywhere: `block[layer, kv_head, 2 (k|v), token, head_dim]`. The host pool holds whole
blocks, a rank's device pool its rectangle of each. A device block id names one byte span in every layout:
the stride is the rank's larger rectangle over the plan's layouts.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigError
from engine.model.shapes import ModelShape
from engine.parallel.layout import Layout, Plan
from engine.parallel.moves import Axis, Extent, extents, stage_layers
from engine.wording import at_least


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
        return 2 * self.block_size * self.shape.head_dim * self.shape.dtype_bytes

    @property
    def host_block_bytes(self) -> int:
        return self.shape.num_layers * self.shape.num_kv_heads * self.cell_bytes

    def extents(self, layout: Layout) -> list[Extent]:
        """Each rank's rectangle (decoder layers x KV heads) of a block, by rank."""
        return extents(layout, stage_layers(self.shape.num_layers, layout.pp), self.axis)

    def device_block_bytes(self, rank: int) -> int:
        """Stride of a rank's device pool. What the smaller layouts leave of it is padding."""
        return max(self.extents(layout)[rank].size for layout in self.plan.layouts) * self.cell_bytes

    @property
    def max_device_block_bytes(self) -> int:
        return max(self.device_block_bytes(rank) for rank in range(self.plan.world_size))

    def padding_fraction(self, layout: Layout) -> float:
        """Share of the device pools' bytes that no rectangle of this layout uses."""
        stride = sum(self.device_block_bytes(rank) for rank in range(self.plan.world_size))
        used = sum(extent.size for extent in self.extents(layout)) * self.cell_bytes
        return 1.0 - used / stride

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


def needed_blocks(geometry: KVGeometry, max_model_len: int) -> int:
    """The least blocks of a device pool: for one longest sequence. Whoever is in its way leaves for the host."""
    return geometry.blocks_for(max_model_len)


def check_pools(geometry: KVGeometry, max_model_len: int, num_device_blocks: int | None, num_host_blocks: int) -> None:
    """Raise ConfigError unless sequences of `max_model_len` tokens fit every pool they may have to use.

    The device pools are passed over while their size is not known (None).
    """
    one, needed = geometry.blocks_for(max_model_len), needed_blocks(geometry, max_model_len)
    if num_device_blocks is not None and num_device_blocks < needed:
        raise ConfigError(
            f"the device KV pool has {num_device_blocks} blocks of {geometry.block_size} tokens but max_model_len "
            f"{max_model_len} needs {needed}: lower --max-model-len or raise --kv-cache-memory-bytes to at least "
            f"{at_least(needed * geometry.max_device_block_bytes)}"
        )
    if not geometry.plan.is_static and num_host_blocks < one:
        raise ConfigError(
            f"the host KV pool has {num_host_blocks} blocks of {geometry.block_size} tokens but max_model_len "
            f"{max_model_len} needs {one}: lower --max-model-len or raise --host-kv-bytes to at least "
            f"{at_least(one * geometry.host_block_bytes)}"
        )
