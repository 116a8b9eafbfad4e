"""The host copy of all weights, one per node, in memory that every rank maps. A static layout keeps none.

The worker provides the shared bytes; each rank fills its share, all wait for each other, and from then on
the store is only read.
"""

from __future__ import annotations

import torch

from seesaw.engine.model.shapes import ModelShape, num_slices
from seesaw.engine.parallel.layout import Plan
from seesaw.engine.parallel.moves import Span
from seesaw.engine.weights.arena import Arena
from seesaw.engine.weights.filling import fill
from seesaw.engine.weights.source import Source


class WeightStore:
    """All layers and all slices of a model, over flat bytes `[whole_bytes]` uint8 that the caller owns.

    A slice of a tensor is one run of bytes, which crosses a link at its full speed.
    """

    def __init__(self, shape: ModelShape, plan: Plan, flat: torch.Tensor) -> None:
        slices = num_slices(plan)
        self.arena = Arena(shape, slices, Span(0, shape.num_layers + 2), Span(0, slices), slice_major=True)
        if flat.numel() < self.arena.total_bytes:
            raise ValueError(f"the weight store needs {self.arena.total_bytes} bytes, got {flat.numel()}")
        self.plan = plan
        self.flat = flat

    def fill(self, source: Source, rank: int, device: torch.device | None = None) -> None:
        """Write this rank's share of the layers; the shares of all ranks tile the store. `device` as in `fill`."""
        layers, ranks = len(self.arena.layers), self.plan.world_size
        share = Span(rank * layers // ranks, (rank + 1) * layers // ranks)
        fill(self.arena, self.flat, source, share, device)
