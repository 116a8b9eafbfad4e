"""An extent's weights as tensors over one flat run of bytes. The host store and every rank's memory are arenas.

Where they lie is arithmetic (`engine.weights.placement`); the memory is the caller's. A tied head beside its embedding
is a second view of it; without it, the head has bytes of its own.
"""

from __future__ import annotations

import torch

from engine.model.shapes import ModelShape, num_slices
from engine.parallel.layout import Layout, Plan
from engine.parallel.moves import Move, Span
from engine.weights.placement import Placement, TensorSpec, tensor_specs, weight_extents
from engine.weights.tensors import LayerWeights, StageWeights


class Arena(Placement):
    """The tensors of some weight layers and slices, over bytes laid out so."""

    @property
    def dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.shape.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def tensor(self, flat: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        """A tensor as a view of the arena's bytes: `[slices, *spec.shape]`, or `spec.shape` if replicated."""
        if spec.name == "head" and self._ties_head:
            spec = spec._replace(layer=0, name="embed")
        start = self._offsets[0][spec]
        return flat[start : start + self._size_bytes(spec)].view(self.dtype).view(self._dimensions(spec))

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
