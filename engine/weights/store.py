"""The host copy of all weights, one per node, in memory that every rank maps. A static layout keeps none.

The worker provides the shared bytes; each rank fills its share, all wait for each other, and from then on
the store is only read.
"""

from __future__ import annotations

import torch

from engine.model.shapes import ModelShape, num_slices
from engine.parallel.layout import Plan
from engine.parallel.moves import Span
from engine.weights.arena import Arena
from engine.weights.source import Source, fill


class WeightStore:
    """All layers and all slices of a model, over flat bytes `[size_bytes]` uint8 that the caller owns."""

    def __init__(self, shape: ModelShape, plan: Plan, flat: torch.Tensor) -> None:
        self.arena = _whole(shape, plan)
        if flat.numel() < self.arena.total_bytes:
            raise ValueError(f"the weight store needs {self.arena.total_bytes} bytes, got {flat.numel()}")
        self.plan = plan
        self.flat = flat

    @staticmethod
    def size_bytes(shape: ModelShape, plan: Plan) -> int:
        """Bytes of shared memory that the store of this model and plan needs."""
        return _whole(shape, plan).total_bytes

    def fill(self, source: Source, rank: int) -> None:
        """Write this rank's share of the layers. The shares of all ranks tile the store."""
        layers, ranks = len(self.arena.layers), self.plan.world_size
        share = Span(rank * layers // ranks, (rank + 1) * layers // ranks)
        fill(self.arena, self.flat, source, share)


def _whole(shape: ModelShape, plan: Plan) -> Arena:
    slices = num_slices(plan)
    return Arena(shape, slices, Span(0, shape.num_layers + 2), Span(0, slices))
