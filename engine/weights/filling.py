"""Fills an arena from a source: which parts of a checkpoint's tensors go where, as `engine.model.spec` says."""

from __future__ import annotations

import torch

from seesaw.engine.model.quantization import FP8
from seesaw.engine.model.spec import Cut, LinearSpec, Part, VectorSpec, WeightSpec
from seesaw.engine.parallel.moves import Span
from seesaw.engine.weights.arena import Arena
from seesaw.engine.weights.fp8 import make_reader, read_floats
from seesaw.engine.weights.placement import TensorSpec, name_prefix, weight_specs
from seesaw.engine.weights.source import Source


def fill(
    arena: Arena, flat: torch.Tensor, source: Source, layers: Span | None = None, device: torch.device | None = None
) -> None:
    """Read the arena's tensors (only those of `layers`, if given) from the source, converted to their dtypes.

    What must be rounded to 8 bits is rounded on `device` (default: where the arena is).
    """
    packer = _Packer(arena, source, device or flat.device)
    weights = {layer: {spec.name: spec for spec in weight_specs(arena.shape, layer)} for layer in _range(arena.layers)}
    for tensor in arena.specs:
        if layers is None or layers.start <= tensor.layer < layers.stop:
            packer.pack(weights[tensor.layer][tensor.name], tensor, arena.tensor(flat, tensor))


def _range(span: Span) -> range:
    return range(span.start, span.stop)


class _Packer:
    """Writes tensors in the arena's form: parts side by side in each slice, units repeated, padding zero."""

    def __init__(self, arena: Arena, source: Source, device: torch.device) -> None:
        self._shape, self._slices, self._num_slices = arena.shape, arena.slices, arena.num_slices
        self._source = source
        quantization = arena.shape.quantization
        self._fp8 = None if quantization is None else make_reader(quantization, source, device)

    def pack(self, weight: WeightSpec, tensor: TensorSpec, out: torch.Tensor) -> None:
        """Fill `out`: `[slices, *tensor.shape]` or, where every slice has all of it, `tensor.shape`."""
        prefix = name_prefix(self._shape, tensor.layer)
        if isinstance(weight, VectorSpec):
            out.copy_(self._source.read(f"{prefix}{weight.source}.weight", (weight.size,), Span(0, weight.size)))
        elif tensor.cut is Cut.COLUMNS:
            self._columns(out, weight, tensor, prefix)
        elif tensor.cut is Cut.ROWS:
            self._rows(out, weight, tensor, prefix)
        elif tensor.field == "input_scale":
            # What is computed at once has one input, and the largest scale overflows for none of its parts.
            read = [self._source.read(f"{prefix}{part.name}.input_scale", (1,), Span(0, 1)) for part in weight.parts]
            out.copy_(torch.cat(read).float().amax(0, keepdim=True))
        else:
            [part] = weight.parts
            out.copy_(self._read(part, prefix, weight, tensor, Span(0, weight.other)))

    def _rows(self, out: torch.Tensor, weight: LinearSpec, tensor: TensorSpec, prefix: str) -> None:
        unit = weight.out_size(self._num_slices) // tensor.shape[0]  # rows that have one of `out`
        for slice_, rows in zip(_range(self._slices), out, strict=True):
            start = 0
            for part in weight.parts:
                span = part.span(slice_, self._num_slices)
                wanted, stop = span & Span(0, part.total), start + len(span) // unit
                filled = start + len(wanted) // unit
                if len(wanted):
                    rows[start:filled].copy_(self._read(part, prefix, weight, tensor, wanted))
                rows[filled:stop].zero_()
                start = stop

    def _columns(self, out: torch.Tensor, weight: LinearSpec, tensor: TensorSpec, prefix: str) -> None:
        """All slices at once: pieces of rows that lie side by side in the checkpoint."""
        [part] = weight.parts
        count, _, each = out.shape
        wanted = Span(self._slices.start * each, self._slices.stop * each)
        if tensor.field == "scales":
            read = self._read(part, prefix, weight, tensor, Span(0, weight.other))[:, wanted.start : wanted.stop]
        else:
            read = self._read(part, prefix, weight, tensor, wanted)
        out.copy_(read.unflatten(1, (count, each)).transpose(0, 1))

    def _read(self, part: Part, prefix: str, weight: LinearSpec, tensor: TensorSpec, wanted: Span) -> torch.Tensor:
        """Rows (of scales and biases always) or columns of a part's layer in the checkpoint."""
        name = prefix + part.name
        rows, columns = (part.total, weight.other) if weight.cut is Cut.ROWS else (weight.other, part.total)
        dim = 1 if weight.cut is Cut.COLUMNS else 0
        if tensor.field == "bias":
            return self._source.read(f"{name}.bias", (rows,), wanted)
        if self._fp8 is None or (tensor.field == "data" and tensor.dtype != FP8):
            return read_floats(self._source, name, (rows, columns), wanted, dim)
        if tensor.field == "data":
            return self._fp8.data(name, (rows, columns), wanted, dim)
        if len(tensor.shape) == 1:
            return self._fp8.scales(name, (rows, columns), wanted, None)
        block = weight.out_size(self._num_slices) // tensor.shape[0]
        group = weight.in_size(self._num_slices) // tensor.shape[1]
        return self._fp8.scales(name, (rows, columns), wanted, group, block)
