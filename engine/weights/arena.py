"""Where an extent's weights lie in one flat run of bytes. The host store and every rank's memory are arenas.

An arena is arithmetic over (layers, slices); the memory is the caller's. A tied head beside its embedding
is a second view of it; without it, the head has bytes of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from engine.model.shapes import ModelShape, num_slices
from engine.parallel.layout import Layout, Plan
from engine.parallel.moves import Axis, Extent, Move, Span, extents, weight_layers
from engine.weights.tensors import LayerWeights, StageWeights, TensorSpec, tensor_specs

ALIGNMENT_BYTES = 256


@dataclass(frozen=True)
class Arena:
    """The tensors of some weight layers and slices, back to back, each aligned."""

    shape: ModelShape
    num_slices: int
    layers: Span
    slices: Span

    @property
    def dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.shape.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @cached_property
    def _offsets(self) -> tuple[dict[TensorSpec, int], int]:
        offsets, end = {}, 0
        for spec in tensor_specs(self.shape, self.num_slices):
            if self.layers.start <= spec.layer < self.layers.stop and not (spec.name == "head" and self._ties_head):
                offsets[spec] = end
                size_bytes = math.prod(self._dimensions(spec)) * self.shape.dtype_bytes
                end += math.ceil(size_bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return offsets, end

    @property
    def _ties_head(self) -> bool:
        return self.shape.tied and self.layers.start == 0

    def _dimensions(self, spec: TensorSpec) -> tuple[int, ...]:
        return (len(self.slices), *spec.shape) if spec.sliced else spec.shape

    @property
    def specs(self) -> Iterator[TensorSpec]:
        """The tensors that have bytes here, by layer."""
        return iter(self._offsets[0])

    @property
    def total_bytes(self) -> int:
        return self._offsets[1]

    def tensor(self, flat: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        """A tensor as a view of the arena's bytes: `[slices, *spec.shape]`, or `spec.shape` if replicated."""
        if spec.name == "head" and self._ties_head:
            spec = spec._replace(layer=0, name="embed")
        dimensions, start = self._dimensions(spec), self._offsets[0][spec]
        size_bytes = math.prod(dimensions) * self.shape.dtype_bytes
        return flat[start : start + size_bytes].view(self.dtype).view(dimensions)

    def stage(self, flat: torch.Tensor, layers: Span | None = None, slices: Span | None = None) -> StageWeights:
        """Views of (a part of) the arena, as the model uses them: the slices of a tensor run into its rows."""
        layers, slices = layers or self.layers, slices or self.slices
        within = slices.within(self.slices.start)
        views: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in range(layers.start, layers.stop)}
        for spec in tensor_specs(self.shape, self.num_slices):
            if spec.layer in views:
                tensor = self.tensor(flat, spec)
                views[spec.layer][spec.name] = tensor[within].flatten(0, 1) if spec.sliced else tensor
        last = self.shape.num_layers + 1
        return StageWeights(
            num_slices=self.num_slices,
            slices=slices,
            layers=[LayerWeights(**tensors) for layer, tensors in views.items() if 0 < layer < last],
            embed=views.get(0, {}).get("embed"),
            norm=views.get(last, {}).get("norm"),
            head=views.get(last, {}).get("head"),
        )


def weight_extents(shape: ModelShape, plan: Plan, layout: Layout) -> list[Extent]:
    """What each rank holds in a layout of the plan (weight layers x weight slices), by rank."""
    return extents(layout, weight_layers(shape.num_layers, layout.pp), Axis("slices", num_slices(plan)))


def rank_arena(shape: ModelShape, plan: Plan, layout: Layout, rank: int) -> Arena:
    """The arena that holds just a rank's extent in a layout of the plan."""
    extent = weight_extents(shape, plan, layout)[rank]
    return Arena(shape, num_slices(plan), extent.layers, extent.slices)


def copy_move(move: Move, source: Arena, source_flat: torch.Tensor, target: Arena, target_flat: torch.Tensor) -> int:
    """Copy a move's rectangle from one arena to another, which both hold it. Returns the bytes copied.

    Between pinned memory and a device the copies are in stream order, and the host does not wait.
    """
    copied_bytes = 0
    for spec in target.specs:
        if move.layers.start <= spec.layer < move.layers.stop:
            old, new = source.tensor(source_flat, spec), target.tensor(target_flat, spec)
            if spec.sliced:
                old = old[move.slices.within(source.slices.start)]
                new = new[move.slices.within(target.slices.start)]
            new.copy_(old, non_blocking=True)
            copied_bytes += new.nbytes
    return copied_bytes
