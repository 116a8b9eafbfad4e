"""Reading a checkpoint from safetensors, part by part: never a whole tensor more than is needed.

The executor finds the checkpoint, and reads what it holds, once (`engine.weights.checkpoint`); every worker then opens
its own `Source` and reads its share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from seesaw.engine.model.checkpoint_files import StoredTensor, stored_tensors
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.parallel.moves import Span
from seesaw.engine.values.config import LoadFormat
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.checkpoint import Checkpoint
from seesaw.engine.weights.dummy import DummySource
from seesaw.engine.weights.source import Source

_FLOATS = ("F32", "F16", "BF16", "F64", "F8_E4M3")


def open_source(
    checkpoint: Checkpoint, shape: ModelShape, load_format: LoadFormat, seed: int, device: torch.device | None = None
) -> Source:
    """The weights of a checkpoint, or random ones of its shapes that depend on `seed` only.

    `device` is where random weights are made (default: the CPU).
    """
    if load_format == "dummy":
        return DummySource(shape, seed, device)
    return CheckpointSource(checkpoint.folder, checkpoint.tensors)


class CheckpointSource(Source):
    """The safetensors files of a folder. Files are mapped, so a part costs only its own bytes."""

    def __init__(self, folder: Path, tensors: Mapping[str, StoredTensor] | None = None) -> None:
        """`tensors` are those of the files, if they are known."""
        self._folder = folder
        self._tensors = stored_tensors(folder) if tensors is None else tensors
        self._handles: dict[Path, Any] = {}

    def _open(self, file: Path) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"cannot read {file} ({error}): download the checkpoint again") from None
        return self._handles[file]

    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        stored = self._tensors.get(name)
        if stored is None:
            if any(other.startswith(name.removesuffix("weight") + "q") for other in self._tensors):  # qweight, qzeros
                raise ConfigError(f"{self._folder} has {name} quantized, which is not supported: use it in bfloat16")
            raise ConfigError(f"the checkpoint {self._folder} has no tensor {name}: is it a complete checkpoint?")
        if _without_last_ones(stored.shape) != _without_last_ones(shape):
            raise ConfigError(f"{name} in {stored.file} has shape {stored.shape} but config.json implies {shape}")
        if stored.dtype not in _FLOATS:
            raise ConfigError(f"{name} in {stored.file} is {stored.dtype}: quantised checkpoints are not supported")
        if stored.shape != shape:  # scales, which are small: [out] or [out, 1], [1], [1, 1] or a number alone
            tensor: torch.Tensor = self._open(stored.file).get_tensor(name)
            return tensor.reshape(shape).narrow(dim, part.start, len(part))
        whole = self._open(stored.file).get_slice(name)
        view: torch.Tensor = whole[part.start : part.stop] if dim == 0 else whole[:, part.start : part.stop]
        return view


def _without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shapes that are equal so hold the same numbers in the same order."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape
