"""What weights a Llama has, how they are cut, and where an extent's lie in one flat run of bytes: arithmetic, no torch.

Weight layers are numbered as in `parallel.moves.weight_layers`: 0 is the embedding, 1 ... n the decoder
layers, n + 1 the final norm and the head. Every sliced tensor is stored slice-major, `[slices, rows, hidden]`,
so that any range of slices is one range of bytes. `engine.weights.arena` makes tensors of it, `engine.sizing` counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from engine.model.shapes import ModelShape, num_slices
from engine.parallel.layout import Layout, Plan
from engine.parallel.moves import Axis, Extent, Span, extents, weight_layers

ALIGNMENT_BYTES = 256


class TensorSpec(NamedTuple):
    """One tensor of one weight layer. `shape` is that of a slice, or of the whole if it is replicated."""

    layer: int
    name: str
    shape: tuple[int, ...]
    sliced: bool


@dataclass(frozen=True)
class SliceShape:
    """How much of each axis one of `num_slices` weight slices holds."""

    shape: ModelShape
    num_slices: int

    @property
    def heads(self) -> int:
        return self.shape.num_heads // self.num_slices

    @property
    def kv_heads(self) -> int:
        """At least one: with more slices than KV heads, neighbouring slices hold copies of one head."""
        return max(1, self.shape.num_kv_heads // self.num_slices)

    def kv_span(self, slice_: int) -> Span:
        first = slice_ * self.shape.num_kv_heads // self.num_slices
        return Span(first, first + self.kv_heads)

    @property
    def ffn(self) -> int:
        return self.shape.ffn // self.num_slices

    @property
    def vocab(self) -> int:
        return self.shape.padded_vocab(self.num_slices) // self.num_slices


def tensor_specs(shape: ModelShape, num_slices: int) -> Iterator[TensorSpec]:
    """All weights, by layer. The head is listed even if it is tied to the embedding."""
    part = SliceShape(shape, num_slices)
    hidden, head_dim, last = shape.hidden, shape.head_dim, shape.num_layers + 1
    yield TensorSpec(0, "embed", (part.vocab, hidden), True)
    for layer in range(1, last):
        yield TensorSpec(layer, "input_norm", (hidden,), False)
        yield TensorSpec(layer, "qkv", ((part.heads + 2 * part.kv_heads) * head_dim, hidden), True)
        yield TensorSpec(layer, "o", (part.heads * head_dim, hidden), True)
        yield TensorSpec(layer, "post_norm", (hidden,), False)
        yield TensorSpec(layer, "gate_up", (2 * part.ffn, hidden), True)
        yield TensorSpec(layer, "down", (part.ffn, hidden), True)
    yield TensorSpec(last, "norm", (hidden,), False)
    yield TensorSpec(last, "head", (part.vocab, hidden), True)


@dataclass(frozen=True)
class Placement:
    """The bytes of some weight layers and slices: their tensors back to back, each aligned.

    A tied head beside its embedding has none of its own.
    """

    shape: ModelShape
    num_slices: int
    layers: Span
    slices: Span

    @cached_property
    def _offsets(self) -> tuple[dict[TensorSpec, int], int]:
        offsets, end = {}, 0
        for spec in tensor_specs(self.shape, self.num_slices):
            if self.layers.start <= spec.layer < self.layers.stop and not (spec.name == "head" and self._ties_head):
                offsets[spec] = end
                end += math.ceil(self._size_bytes(spec) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        return offsets, end

    @property
    def _ties_head(self) -> bool:
        return self.shape.tied and self.layers.start == 0

    def _dimensions(self, spec: TensorSpec) -> tuple[int, ...]:
        return (len(self.slices), *spec.shape) if spec.sliced else spec.shape

    def _size_bytes(self, spec: TensorSpec) -> int:
        return math.prod(self._dimensions(spec)) * self.shape.dtype_bytes

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
