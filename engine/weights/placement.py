"""Where the weights of an extent lie in one flat run of bytes: arithmetic, no torch.

Weight layers are numbered as in `parallel.moves.weight_layers`: 0 is the embedding, 1 ... n the decoder
layers, n + 1 the final norm and the head. `engine.weights.arena` makes tensors of it, `engine.sizing` counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from seesaw.engine.model.families import family
from seesaw.engine.model.quantization import FP8
from seesaw.engine.model.shapes import DTYPE_BYTES, ModelShape, num_slices
from seesaw.engine.model.spec import Cut, VectorSpec, WeightSpec, embedding, ending
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.parallel.moves import Axis, Extent, Span, extents, weight_layers

ALIGNMENT_BYTES = 256
_BYTES = {**DTYPE_BYTES, FP8: 1}


class TensorSpec(NamedTuple):
    """One tensor of one weight layer. `shape` is that of a slice, or of the whole if every slice has all of it."""

    layer: int
    name: str  # of the weight
    field: str  # of `Linear`, `data` for a vector
    shape: tuple[int, ...]
    cut: Cut
    dtype: str

    @property
    def is_sliced(self) -> bool:
        return self.cut is not Cut.WHOLE


def weight_specs(shape: ModelShape, layer: int) -> tuple[WeightSpec, ...]:
    """What a weight layer consists of. The head is listed even if it is tied to the embedding."""
    if layer == 0:
        return (embedding(shape),)
    return ending(shape) if layer > shape.num_layers else family(shape.family).layer_specs(shape)


def name_prefix(shape: ModelShape, layer: int) -> str:
    """What the names of a weight layer's tensors begin with in a checkpoint."""
    return f"model.layers.{layer - 1}." if 0 < layer <= shape.num_layers else ""


def tensor_specs(shape: ModelShape, num_slices: int, layers: Span) -> Iterator[TensorSpec]:
    """The tensors of some weight layers, by layer."""
    for layer in range(layers.start, layers.stop):
        for spec in weight_specs(shape, layer):
            if isinstance(spec, VectorSpec):
                yield TensorSpec(layer, spec.name, "data", (spec.size,), Cut.WHOLE, shape.dtype)
            else:
                for field in spec.fields(shape, num_slices, name_prefix(shape, layer)):
                    yield TensorSpec(layer, spec.name, *field)


@dataclass(frozen=True)
class Placement:
    """The bytes of some weight layers and slices: their tensors back to back, each aligned.

    Slices of a tensor that is cut by columns lie side by side, so that they are one operand, or one after another
    (`slice_major`), so that each is one run of bytes. A tied head beside its embedding has no bytes of its own.
    """

    shape: ModelShape
    num_slices: int
    layers: Span
    slices: Span
    slice_major: bool = False

    @cached_property
    def _offsets(self) -> tuple[dict[TensorSpec, int], int]:
        offsets, end = {}, 0
        for spec in tensor_specs(self.shape, self.num_slices, self.layers):
            if not (spec.name == "head" and self._ties_head):
                offsets[spec] = end
                end += math.ceil(self._size_bytes(spec) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return offsets, end

    @property
    def _ties_head(self) -> bool:
        return self.shape.tied and self.layers.start == 0

    def _size_bytes(self, spec: TensorSpec) -> int:
        copies = len(self.slices) if spec.is_sliced else 1
        return copies * math.prod(spec.shape) * _BYTES[spec.dtype]

    @property
    def specs(self) -> Iterator[TensorSpec]:
        """The tensors that have bytes here, by layer."""
        return iter(self._offsets[0])

    @property
    def starts(self) -> list[int]:
        """Where each tensor begins, in bytes, ascending."""
        return list(self._offsets[0].values())

    @property
    def total_bytes(self) -> int:
        return self._offsets[1]


def weight_extents(shape: ModelShape, plan: Plan, layout: Layout) -> list[Extent]:
    """What each rank holds in a layout of the plan (weight layers x weight slices), by rank."""
    return extents(layout, weight_layers(shape.num_layers, layout.pp), Axis("slices", num_slices(plan)))


def rank_bytes(shape: ModelShape, plan: Plan, layout: Layout) -> list[int]:
    """Bytes of each rank's extent in a layout of the plan, by rank."""
    slices, sizes = num_slices(plan), {}
    for extent in weight_extents(shape, plan, layout):
        key = (extent.layers, len(extent.slices))  # all slices are alike, and replicas too
        if key not in sizes:
            sizes[key] = Placement(shape, slices, extent.layers, extent.slices).total_bytes
    return [sizes[extent.layers, len(extent.slices)] for extent in weight_extents(shape, plan, layout)]


def whole_bytes(shape: ModelShape, plan: Plan) -> int:
    """Bytes of all layers and slices: of the host's store of a plan, or of the model on a single device."""
    slices = num_slices(plan)
    return Placement(shape, slices, Span(0, shape.num_layers + 2), Span(0, slices)).total_bytes
