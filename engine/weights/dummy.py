"""Random weights of the right shapes, for `--load-format dummy`: the same model in every layout.

A row of a tensor is a window of one block of noise, at a place that follows from (seed, tensor, row). So any
part of any tensor costs one pass over its bytes, and does not depend on which parts are asked for.
"""

from __future__ import annotations

import zlib

import torch

from seesaw.engine.model.counts import layer_linears
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.model.spec import embedding
from seesaw.engine.ops.fp8 import E4M3, LARGEST, divided
from seesaw.engine.parallel.moves import Span
from seesaw.engine.weights.source import Source

_PLACES = 1 << 20
_STRIDE = 7919  # odd, so that up to _PLACES rows have places of their own


class DummySource(Source):
    """Gaussian weights whose products keep unit variance; norms are ones. The same numbers on every device."""

    def __init__(self, shape: ModelShape, seed: int, device: torch.device | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        layer = [size for linear in layer_linears(shape) for size in (linear.other, *(p.total for p in linear.parts))]
        longest = max(embedding(shape).other, *layer)  # both ways: who rounds to 8 bits reads whole rows
        noise = torch.randn(_PLACES + longest - 1, generator=generator) * shape.hidden**-0.5
        self._noise = noise.to(getattr(torch, shape.dtype)).to(device or "cpu")
        self._seed = seed
        self._quantization = shape.quantization
        if shape.quantization is not None and shape.quantization.checkpoint != "float":
            self._scale = float(noise.abs().max()) / LARGEST
            self._rounded = divided(noise, torch.tensor(self._scale)).view(torch.uint8).to(device or "cpu")

    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        if name.endswith(".input_scale"):
            return torch.full((len(part),), 0.05, device=self._noise.device)
        if name.endswith((".weight_scale", ".weight_scale_inv")):
            return torch.full((len(part), *shape[1:]), self._scale, device=self._noise.device)
        if len(shape) == 1:
            if name.endswith("bias"):
                return self.read(name, (*shape, 1), part)[:, 0]
            return torch.ones(len(part), dtype=self._noise.dtype, device=self._noise.device)
        is_rounded = self._is_rounded(name)
        noise = self._rounded if is_rounded else self._noise
        width = shape[1 - dim]
        first = zlib.crc32(f"{self._seed}/{name}".encode())
        places = (first + torch.arange(part.start, part.stop, device=self._noise.device) * _STRIDE) % _PLACES
        windows = noise.unfold(0, width, 1)[places]
        if is_rounded:
            windows = windows.view(E4M3)
        return windows if dim == 0 else windows.T

    def _is_rounded(self, name: str) -> bool:
        """Whether a checkpoint of this kind would hold this tensor in 8 bits."""
        quantization = self._quantization
        if quantization is None or quantization.checkpoint == "float" or not name.endswith("proj.weight"):
            return False
        return not quantization.ignores(name.removesuffix(".weight"))
