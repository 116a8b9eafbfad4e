"""A rank's table of sequences: which device blocks and which sampling parameters a slot has. Used by the runner."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seesaw.engine.ops.base import BatchInputs
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.wire.commands import Forward


@dataclass(frozen=True)
class Rows:
    """What a step computes, in the order of its rows of hidden states: who decodes, then chunks of prompts."""

    batch: BatchInputs
    tokens: torch.Tensor  # int64 `[tokens]`: an id, or `~slot` of the last token sampled there
    sampled: list[int]  # of these rows
    slots: list[int]  # whose rows those are
    positions: list[int]  # of the tokens that are sampled


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

    def rows(self, forward: Forward) -> Rows:
        """A step's rows; `update` it first."""
        chunks = forward.chunks
        slots, positions, tokens = forward.decodes.columns()
        lens = [len(chunk.tokens) for chunk in chunks]
        query_lens = np.concatenate((np.ones_like(slots), np.array(lens, dtype=np.int32)))
        ends = [chunk.start + len(chunk.tokens) for chunk in chunks]
        context_lens = np.concatenate((positions + 1, np.array(ends, dtype=np.int32)))
        width = -(-int(context_lens.max()) // self.block_size)
        all_slots = np.concatenate((slots, np.array([chunk.slot for chunk in chunks], dtype=np.int32)))
        prompts = np.array([token for chunk in chunks for token in chunk.tokens], dtype=np.int64)
        last_rows = len(slots) - 1 + np.cumsum(lens, dtype=np.int64)
        is_sampled = np.array([chunk.sample for chunk in chunks], dtype=np.bool_)
        return Rows(
            batch=BatchInputs(
                query_lens=torch.from_numpy(query_lens),
                context_lens=torch.from_numpy(context_lens),
                tables=self._blocks[torch.from_numpy(all_slots.astype(np.int64)), :width],
            ),
            tokens=torch.from_numpy(np.concatenate((tokens, prompts))),
            sampled=[*range(len(slots)), *last_rows[is_sampled].tolist()],
            slots=[*slots.tolist(), *(chunk.slot for chunk in chunks if chunk.sample)],
            positions=[*(positions + 1).tolist(), *itertools.compress(ends, is_sampled.tolist())],
        )

    def blocks(self, slots: Sequence[int], width: int) -> torch.Tensor:
        """The first `width` blocks of each slot, int32 `[slots, width]`; behind a slot's last one comes anything."""
        return self._blocks[torch.tensor(slots), :width]

    def places(self, slots: Sequence[int], positions: Sequence[int]) -> torch.Tensor:
        """Where in the pool a slot's position is, in tokens, int64 `[slots]`."""
        at = torch.tensor(positions, dtype=torch.int64)
        rows = torch.tensor(slots, dtype=torch.int64)
        return self._blocks[rows, at // self.block_size].long() * self.block_size + at % self.block_size

    def first_places(self, slot: int, count: int) -> torch.Tensor:
        """The same of a slot's first positions, int64 `[count]`."""
        blocks = self._blocks[slot, : -(-count // self.block_size)].long()
        return (blocks[:, None] * self.block_size + torch.arange(self.block_size)).flatten()[:count]

    def sampling(self, slots: list[int]) -> list[RowSampling]:
        rows = [self._sampling[slot] for slot in slots]
        if any(row is None for row in rows):
            raise ValueError("a step samples for a slot that no sequence has taken")
        return [row for row in rows if row is not None]
