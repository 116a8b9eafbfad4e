"""Where the 8-bit numbers of a linear layer come from, by what the checkpoint holds. Used by `weights.filling`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict

import torch

from seesaw.engine.model.quantization import BLOCK, Quantization
from seesaw.engine.ops.fp8 import E4M3, divided, scales_of
from seesaw.engine.parallel.moves import Span
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.source import Source

_CHUNK_ELEMENTS = 1 << 24  # that are float32 at once
_KEPT_SCALES = 64  # tensors'


class Fp8Reader(ABC):
    """Reads parts of linear layers `[out, in]` as e4m3 and float32 scales. `name` is without `.weight`."""

    @abstractmethod
    def data(self, name: str, shape: tuple[int, int], part: Span, dim: int) -> torch.Tensor:
        """Rows (dim 0) or columns (dim 1) `part`, e4m3."""

    @abstractmethod
    def scales(self, name: str, shape: tuple[int, int], rows: Span, group: int | None, block: int = 1) -> torch.Tensor:
        """Of some rows, float32: `[rows]`, or `[rows / block, in / group]`."""


def make_reader(quantization: Quantization, source: Source, device: torch.device) -> Fp8Reader:
    """`device` is where floats are rounded."""
    match quantization.checkpoint:
        case "float":
            return FloatReader(source, device)
        case "blocks":
            return BlockReader(source, quantization.block_scales)
        case kind:
            return ChannelReader(source, per_tensor=kind == "tensor")


class FloatReader(Fp8Reader):
    """Rounds what it reads: the largest of a row, of the whole one in every layout, becomes e4m3's largest."""

    def __init__(self, source: Source, device: torch.device) -> None:
        self._source = source
        self._device = device
        self._known: OrderedDict[tuple[str, Span], torch.Tensor] = OrderedDict()

    def data(self, name: str, shape: tuple[int, int], part: Span, dim: int) -> torch.Tensor:
        rows = part if dim == 0 else Span(0, shape[0])
        scales = self.scales(name, shape, rows, None)[:, None]
        out = torch.empty(len(rows), shape[1] if dim == 0 else len(part), dtype=E4M3, device=self._device)
        for chunk in _chunks(rows, shape[1]):
            read = self._read(name, shape, chunk)
            if dim == 1:
                read = read[:, part.start : part.stop]
            at = chunk.within(rows.start)
            out[at] = divided(read, scales[at])
        return out

    def scales(self, name: str, shape: tuple[int, int], rows: Span, group: int | None, block: int = 1) -> torch.Tensor:
        """Asked for with the data, and again by itself: the last ones are kept."""
        if group is not None:
            raise ValueError("floats are rounded with a scale for each row")
        key = (name, rows)
        if key not in self._known:
            largest = torch.empty(len(rows), dtype=torch.float32, device=self._device)
            for chunk in _chunks(rows, shape[1]):
                largest[chunk.within(rows.start)] = self._read(name, shape, chunk).abs().amax(1).float()
            self._known[key] = scales_of(largest)
            if len(self._known) > _KEPT_SCALES:
                self._known.popitem(last=False)
        return self._known[key]

    def _read(self, name: str, shape: tuple[int, int], rows: Span) -> torch.Tensor:
        return read_floats(self._source, name, shape, rows).to(self._device)


class _StoredReader(Fp8Reader):
    """Of checkpoints that hold e4m3."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def data(self, name: str, shape: tuple[int, int], part: Span, dim: int) -> torch.Tensor:
        read = self._source.read(f"{name}.weight", shape, part, dim)
        if read.dtype != E4M3:
            raise ConfigError(
                f"{name}.weight is {str(read.dtype).removeprefix('torch.')}, and config.json says that it is "
                "quantized: download the checkpoint again"
            )
        return read


class ChannelReader(_StoredReader):
    """compressed-tensors' `weight` and `weight_scale`: one scale for each output, or for the tensor."""

    def __init__(self, source: Source, per_tensor: bool) -> None:
        super().__init__(source)
        self._per_tensor = per_tensor

    def scales(self, name: str, shape: tuple[int, int], rows: Span, group: int | None, block: int = 1) -> torch.Tensor:
        assert group is None
        if self._per_tensor:
            scale = self._source.read(f"{name}.weight_scale", (1,), Span(0, 1))
            return scale.float().reshape(1).expand(len(rows))
        return self._source.read(f"{name}.weight_scale", (shape[0], 1), rows).float().flatten()


class BlockReader(_StoredReader):
    """`weight`, and by what each block of 128 x 128 of it is multiplied.

    DeepSeek and Qwen call that `weight_scale_inv`, compressed-tensors calls it `weight_scale`.
    """

    def __init__(self, source: Source, scales: str) -> None:
        super().__init__(source)
        self._scales = scales

    def scales(self, name: str, shape: tuple[int, int], rows: Span, group: int | None, block: int = 1) -> torch.Tensor:
        assert group is not None
        blocks = tuple(-(-size // BLOCK) for size in shape)
        some = Span(rows.start // BLOCK, -(-rows.stop // BLOCK))
        read = self._source.read(f"{name}.{self._scales}", blocks, some).float()
        if block == 1:
            read = read.repeat_interleave(BLOCK, 0)[rows.within(some.start * BLOCK)]
        return read.repeat_interleave(BLOCK // group, 1)[:, : shape[1] // group]


def read_floats(source: Source, name: str, shape: tuple[int, int], part: Span, dim: int = 0) -> torch.Tensor:
    """A layer that config.json does not call quantized. Raises ConfigError if it is."""
    read = source.read(f"{name}.weight", shape, part, dim)
    if read.dtype == E4M3:
        raise ConfigError(
            f"{name}.weight is in 8 bits, and config.json says nothing of it: download the checkpoint again, with its "
            "quantization_config"
            if name not in ("lm_head", "model.embed_tokens")
            else f"{name}.weight is in 8 bits, which is not supported: use a checkpoint that keeps it in bfloat16"
        )
    return read


def _chunks(rows: Span, width: int) -> list[Span]:
    each = max(1, _CHUNK_ELEMENTS // width)
    return [Span(start, min(start + each, rows.stop)) for start in range(rows.start, rows.stop, each)]
