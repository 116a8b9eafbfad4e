"""Which tensors make up a linear layer, by how its numbers are kept: arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Iterator

from engine.model.shapes import ModelShape
from engine.model.spec import Cut, LinearSpec

Field = tuple[str, tuple[int, ...], Cut, str]
"""Of `engine.model.linear.Linear`: its name, the shape of a slice (or of the whole), how it is cut, its dtype."""


def linear_fields(shape: ModelShape, spec: LinearSpec, num_slices: int) -> Iterator[Field]:
    out = spec.out_size(num_slices)
    yield "data", (out, spec.in_size(num_slices)), spec.cut, shape.dtype
    if spec.bias:
        yield "bias", (out,), spec.cut if spec.cut is Cut.ROWS else Cut.WHOLE, shape.dtype
