"""A rank's table of sequences: which device blocks and which sampling parameters a slot has. Used by the runner."""

from __future__ import annotations

import torch

from engine.model.ops.base import BatchInputs
from engine.sampling import RowSampling
from engine.steps import Chunk, Forward


class SlotTable:
    """Host-side rows of a replica's slots: int32 `[slots, max_blocks]` block ids, and sampling parameters."""

    def __init__(self, num_slots: int, max_blocks: int, num_device_blocks: int, block_size: int) -> None:
        self._blocks = torch.zeros(num_slots, max_blocks, dtype=torch.int32)
        self._sampling: list[RowSampling | None] = [None] * num_slots
        self._num_device_blocks = num_device_blocks
        self.block_size = block_size

    def update(self, forward: Forward) -> None:
        """Apply a step's `inits` and `tables`. Raises IndexError for a block that is not there."""
        for init in forward.inits:
            self._sampling[init.slot] = init.sampling
        for table in forward.tables:
            if table.blocks and not (min(table.blocks) >= 0 and max(table.blocks) < self._num_device_blocks):
                raise IndexError(
                    f"step {forward.id} names blocks {min(table.blocks)} to {max(table.blocks)}, "
                    f"the device pool has {self._num_device_blocks}"
                )
            row = self._blocks[table.slot, table.first : table.first + len(table.blocks)]
            row.copy_(torch.tensor(table.blocks, dtype=torch.int32))

    def batch(self, chunks: list[Chunk]) -> BatchInputs:
        context_lens = [chunk.start + len(chunk.tokens) for chunk in chunks]
        width = -(-max(context_lens) // self.block_size)
        return BatchInputs(
            query_lens=torch.tensor([len(chunk.tokens) for chunk in chunks], dtype=torch.int32),
            context_lens=torch.tensor(context_lens, dtype=torch.int32),
            tables=self._blocks[[chunk.slot for chunk in chunks], :width],
        )

    def sampling(self, chunks: list[Chunk]) -> list[RowSampling]:
        rows = [self._sampling[chunk.slot] for chunk in chunks]
        if any(row is None for row in rows):
            raise ValueError("a step samples for a slot that no sequence has taken")
        return [row for row in rows if row is not None]
