"""An extent's weights as tensors over one flat run of bytes. The host store and every rank's memory are arenas.

Where they lie is arithmetic (`engine.weights.placement`); the memory is the caller's. A tied head beside its embedding
is a second view of it; without it, the head has bytes of its own.
"""

from __future__ import annotations

import torch

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.shapes import ModelShape, num_slices
from seesaw.engine.model.spec import Cut, LinearSpec
from seesaw.engine.model.stage import Operands, StageWeights
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.parallel.moves import Move, Span
from seesaw.engine.weights.placement import Placement, TensorSpec, tensor_specs, weight_extents, weight_specs


class Arena(Placement):
    """The tensors of some weight layers and slices, over bytes laid out so."""

    def tensor(self, flat: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        """A view of the arena's bytes: `[slices, *spec.shape]`, or `spec.shape` if every slice has it all."""
        if not spec.is_sliced:
            return self._run(flat, spec).view(spec.shape)
        count = len(self.slices)
        if spec.cut is Cut.COLUMNS and not self.slice_major:
            rows, columns = spec.shape
            return self._run(flat, spec).view(rows, count, columns).transpose(0, 1)
        return self._run(flat, spec).view(count, *spec.shape)

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.shape.dtype)
        return dtype

    def _run(self, flat: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        if spec.name == "head" and self._ties_head:
            spec = spec._replace(layer=0, name="embed")
        start = self._offsets[0][spec]
        dtype: torch.dtype = getattr(torch, spec.dtype)
        return flat[start : start + self._size_bytes(spec)].view(dtype)

    def stage(self, flat: torch.Tensor) -> StageWeights:
        """The arena's weights as the model uses them: slices run into rows, or into columns."""
        if self.slice_major:
            raise ValueError("slices that lie one after another are no operands")
        layers = [self._operands(flat, layer) for layer in range(self.layers.start, self.layers.stop)]
        ends: dict[str, Linear | torch.Tensor] = {}
        if self.layers.start == 0:
            ends |= layers.pop(0)
        if self.layers.stop == self.shape.num_layers + 2:
            ends |= layers.pop()
        embed, norm, head = (ends.get(name) for name in ("embed", "norm", "head"))
        assert not isinstance(norm, Linear) and not isinstance(head, torch.Tensor)
        return StageWeights(
            num_slices=self.num_slices,
            slices=self.slices,
            layers=layers,
            embed=embed.data if embed is not None else None,
            norm=norm,
            head=head,
        )

    def _operands(self, flat: torch.Tensor, layer: int) -> Operands:
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        for spec in tensor_specs(self.shape, self.num_slices, Span(layer, layer + 1)):
            tensors.setdefault(spec.name, {})[spec.field] = self._operand(flat, spec)
        return {
            spec.name: self._linear(spec, tensors[spec.name])
            if isinstance(spec, LinearSpec)
            else tensors[spec.name]["data"]
            for spec in weight_specs(self.shape, layer)
        }

    def _operand(self, flat: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
        tensor = self.tensor(flat, spec)
        if not spec.is_sliced:
            return tensor
        return tensor.transpose(0, 1).flatten(1, 2) if spec.cut is Cut.COLUMNS else tensor.flatten(0, 1)

    def _linear(self, spec: LinearSpec, tensors: dict[str, torch.Tensor]) -> Linear:
        if spec.cut is Cut.COLUMNS and self.slices.start > 0:
            tensors.pop("bias", None)  # the first shard alone adds it to the sum
        return Linear(**tensors, dtype=self._dtype)


def rank_arena(shape: ModelShape, plan: Plan, layout: Layout, rank: int) -> Arena:
    """The arena that holds just a rank's extent in a layout of the plan."""
    extent = weight_extents(shape, plan, layout)[rank]
    return Arena(shape, num_slices(plan), extent.layers, extent.slices)


def copy_move(move: Move, source: Arena, source_flat: torch.Tensor, target: Arena, target_flat: torch.Tensor) -> int:
    """Copy a move's rectangle from one arena to another, which both hold it. Returns the bytes copied.

    Between pinned memory and a device the copies are in stream order, and the host does not wait. Several slices that
    lie one after another here and side by side there cross the link in one piece, into memory of torch's own.
    """
    copied_bytes = 0
    for spec in target.specs:
        if move.layers.start <= spec.layer < move.layers.stop:
            old, new = source.tensor(source_flat, spec), target.tensor(target_flat, spec)
            if spec.is_sliced:
                old = old[move.slices.within(source.slices.start)]
                new = new[move.slices.within(target.slices.start)]
            new.copy_(old, non_blocking=True)
            copied_bytes += new.nbytes
    return copied_bytes
