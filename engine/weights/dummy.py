"""Random weights of the right shapes, for `--load-format dummy`: the same model in every layout.

A row of a tensor is a window of one block of noise, at a place that follows from (seed, tensor, row). So any
part of any tensor costs one pass over its bytes, and does not depend on which parts are asked for.
"""

from __future__ import annotations

import zlib

import torch

from engine.model.counts import layer_linears
from engine.model.shapes import ModelShape
from engine.model.spec import embedding
from engine.parallel.moves import Span
from engine.weights.source import Source

_PLACES = 1 << 20
_STRIDE = 7919  # odd, so that up to _PLACES rows have places of their own


class DummySource(Source):
    """Gaussian weights whose products keep unit variance; norms are ones. The same numbers on every device."""

    def __init__(self, shape: ModelShape, seed: int, device: torch.device | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        longest = max(linear.other for linear in (embedding(shape), *layer_linears(shape)))
        noise = torch.randn(_PLACES + longest - 1, generator=generator) * shape.hidden**-0.5
        self._noise = noise.to(getattr(torch, shape.dtype)).to(device or "cpu")
        self._seed = seed

    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        if len(shape) == 1:
            if name.endswith("bias"):
                return self.read(name, (*shape, 1), part)[:, 0]
            return torch.ones(len(part), dtype=self._noise.dtype, device=self._noise.device)
        width = shape[1 - dim]
        first = zlib.crc32(f"{self._seed}/{name}".encode())
        places = (first + torch.arange(part.start, part.stop, device=self._noise.device) * _STRIDE) % _PLACES
        windows = self._noise.unfold(0, width, 1)[places]
        return windows if dim == 0 else windows.T
