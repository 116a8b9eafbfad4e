"""What weights a model has and how each is cut into slices: pure values, without torch.

A family says them (`engine.model.families`), `engine.weights` places, reads and moves them, sizing counts them. Nobody
but the family knows what its layer computes, nobody but the weights' `Method` what its numbers are.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from seesaw.engine.model.quantization import BLOCK, FP8, Quantization
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.parallel.moves import Axis, Span
from seesaw.engine.values.errors import ConfigError


class Cut(enum.Enum):
    """How a tensor, `[out, in]` or `[out]`, is divided among weight slices."""

    ROWS = "rows"  # column-parallel: each slice has some of the outputs
    COLUMNS = "columns"  # row-parallel: each slice has some of the inputs, and the slices' results are summed
    WHOLE = "whole"  # every slice has all of it


@dataclass(frozen=True)
class Part:
    """The rows (or columns) of one tensor of a checkpoint that go into slices, in units that are never cut.

    With more slices than units, neighbouring slices hold copies of one unit.
    """

    name: str  # in the checkpoint, behind the layer's prefix, without `.weight`
    units: int  # heads, ffn columns, tokens of the vocabulary
    unit: int = 1  # rows of a unit
    padded: bool = False  # the units need not divide: the last slices have some rows of zeros

    @property
    def total(self) -> int:
        return self.units * self.unit

    def size(self, num_slices: int) -> int:
        """Rows of each slice."""
        return len(self.span(0, num_slices))

    def span(self, slice_: int, num_slices: int) -> Span:
        """The rows of a slice. Padded ones lie behind `total`."""
        if self.padded:
            each = -(-self.units // num_slices)
            span = Span(slice_ * each, (slice_ + 1) * each)
        else:
            span = Axis(self.name, self.units).span(slice_, num_slices)
        return Span(span.start * self.unit, span.stop * self.unit)


Field = tuple[str, tuple[int, ...], Cut, str]
"""Of `engine.model.linear.Linear`: its name, the shape of a slice (or of the whole), how it is cut, its dtype."""


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer, `[out, in]`. Several parts make one product, side by side in each slice."""

    name: str
    cut: Cut  # ROWS or COLUMNS
    parts: tuple[Part, ...]  # of the cut dimension
    other: int  # size of the dimension that is not cut
    bias: bool = False
    quantizes: bool = True  # a quantized model's embedding and head keep the model's dtype

    def out_size(self, num_slices: int) -> int:
        """Rows of one slice."""
        return sum(part.size(num_slices) for part in self.parts) if self.cut is Cut.ROWS else self.other

    def in_size(self, num_slices: int) -> int:
        """Columns of one slice."""
        return sum(part.size(num_slices) for part in self.parts) if self.cut is Cut.COLUMNS else self.other

    @property
    def num_params(self) -> int:
        return sum(part.total for part in self.parts) * self.other

    def fields(self, shape: ModelShape, num_slices: int, prefix: str) -> Iterator[Field]:
        """What it is made of. `prefix` stands before the parts' names in the checkpoint. Raises ConfigError."""
        out, columns = self.out_size(num_slices), self.in_size(num_slices)
        whole_or_rows = self.cut if self.cut is Cut.ROWS else Cut.WHOLE
        quantization = shape.quantization
        if quantization is None or not self._is_quantized(quantization, prefix):
            yield "data", (out, columns), self.cut, shape.dtype
        else:
            yield "data", (out, columns), self.cut, FP8
            group = quantization.group(columns)
            if group is not None:
                rows = BLOCK if group == BLOCK and self._has_whole_blocks(num_slices) else 1
                yield "scales", (out // rows, columns // group), self.cut, "float32"
            else:
                yield "scales", (out,), whole_or_rows, "float32"
            if quantization.static:
                yield "input_scale", (1,), Cut.WHOLE, "float32"
        if self.bias:
            yield "bias", (out,), whole_or_rows, shape.dtype

    def _has_whole_blocks(self, num_slices: int) -> bool:
        """Whether no slice and no part begins or ends within a block of rows."""
        if self.cut is Cut.COLUMNS:
            return self.other % BLOCK == 0
        spans = [part.span(slice_, num_slices) for part in self.parts for slice_ in range(num_slices)]
        return all(span.start % BLOCK == 0 and span.stop % BLOCK == 0 for span in spans)

    def _is_quantized(self, quantization: Quantization, prefix: str) -> bool:
        ignored = {quantization.ignores(prefix + part.name) for part in self.parts}
        if self.quantizes and len(ignored) > 1:
            names = ", ".join(prefix + part.name for part in self.parts)
            raise ConfigError(
                f"the checkpoint quantizes only some of {names}, which are computed at once: quantize all or none"
            )
        return self.quantizes and ignored == {False}


@dataclass(frozen=True)
class VectorSpec:
    """A vector that every rank of its layer holds, such as a norm's scales."""

    name: str
    source: str  # in the checkpoint, behind the layer's prefix, without `.weight`
    size: int


WeightSpec = LinearSpec | VectorSpec


def embedding(shape: ModelShape) -> LinearSpec:
    """The first weight layer. Its rows are looked up."""
    tokens = Part("model.embed_tokens", shape.vocab, padded=True)
    return LinearSpec("embed", Cut.ROWS, (tokens,), shape.hidden, quantizes=False)


def ending(shape: ModelShape) -> tuple[VectorSpec, LinearSpec]:
    """The last weight layer: norm and head. A tied head is the embedding."""
    tokens = Part("model.embed_tokens" if shape.tied else "lm_head", shape.vocab, padded=True)
    head = LinearSpec("head", Cut.ROWS, (tokens,), shape.hidden, quantizes=False)
    return VectorSpec("norm", "model.norm", shape.hidden), head
