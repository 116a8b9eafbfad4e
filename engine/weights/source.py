"""Where weights come from, and how a checkpoint's tensors are packed into the slices of an arena.

A source knows tensors by their names and shapes in a transformers checkpoint and reads only the part that is asked for.
What goes where is `engine.model.spec`'s.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from engine.model.spec import Cut, Part, VectorSpec, WeightSpec
from engine.parallel.moves import Span
from engine.weights.arena import Arena
from engine.weights.placement import TensorSpec, weight_specs


class Source(ABC):
    """Reads parts of a checkpoint's tensors, in any order. The same part is always the same numbers."""

    @abstractmethod
    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        """Entries `part` of dimension `dim` of the named tensor, whose whole shape is `shape`; any float type.

        The result may be a view that is valid until the next call. Raises ConfigError, naming tensor and file,
        if it is missing or has another shape.
        """


def fill(arena: Arena, flat: torch.Tensor, source: Source, layers: Span | None = None) -> None:
    """Read the arena's tensors (only those of `layers`, if given) from the source, converted to its dtype."""
    packer = _Packer(arena, source)
    weights = {layer: {spec.name: spec for spec in weight_specs(arena.shape, layer)} for layer in _range(arena.layers)}
    for tensor in arena.specs:
        if layers is None or layers.start <= tensor.layer < layers.stop:
            packer.pack(weights[tensor.layer][tensor.name], tensor, arena.tensor(flat, tensor))


def _range(span: Span) -> range:
    return range(span.start, span.stop)


class _Packer:
    """Writes tensors in the arena's form: parts side by side in each slice, units repeated, padding zero."""

    def __init__(self, arena: Arena, source: Source) -> None:
        self._shape, self._slices, self._num_slices = arena.shape, arena.slices, arena.num_slices
        self._source = source

    def pack(self, weight: WeightSpec, tensor: TensorSpec, out: torch.Tensor) -> None:
        """Fill `out`: `[slices, *tensor.shape]` or, where every slice has all of it, `tensor.shape`."""
        decoder = 0 < tensor.layer <= self._shape.num_layers
        prefix = f"model.layers.{tensor.layer - 1}." if decoder else ""
        if isinstance(weight, VectorSpec):
            out.copy_(self._source.read(f"{prefix}{weight.source}.weight", (weight.size,), Span(0, weight.size)))
            return
        suffix = {"data": "weight", "bias": "bias"}[tensor.field]
        names = [(part, f"{prefix}{part.name}.{suffix}") for part in weight.parts]
        if tensor.cut is Cut.WHOLE:
            [(_, name)] = names
            out.copy_(self._source.read(name, tensor.shape, Span(0, *tensor.shape)))
        elif tensor.cut is Cut.COLUMNS:
            [(part, name)] = names
            self._columns(out, part, name)
        else:
            self._rows(out, names, tensor.shape[1:])

    def _rows(self, out: torch.Tensor, names: list[tuple[Part, str]], width: tuple[int, ...]) -> None:
        for slice_, rows in zip(_range(self._slices), out, strict=True):
            start = 0
            for part, name in names:
                span = part.span(slice_, self._num_slices)
                wanted, stop = span & Span(0, part.total), start + len(span)
                if len(wanted):
                    read = self._source.read(name, (part.total, *width), wanted)
                    rows[start : start + len(wanted)].copy_(read)
                rows[start + len(wanted) : stop].zero_()
                start = stop

    def _columns(self, out: torch.Tensor, part: Part, name: str) -> None:
        """All slices at once: pieces of rows that lie side by side in the checkpoint."""
        count, rows, each = out.shape
        wanted = Span(self._slices.start * each, self._slices.stop * each)
        read = self._source.read(name, (rows, part.total), wanted, dim=1)
        out.copy_(read.unflatten(1, (count, each)).transpose(0, 1))
