"""Reading a checkpoint from safetensors, part by part: never a whole tensor more than is needed.

The executor finds the checkpoint once (`engine.weights.checkpoint`); every worker then opens its own `Source` and
reads its share.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from engine.model.shapes import ModelShape
from engine.parallel.moves import Span
from engine.values.config import LoadFormat
from engine.values.errors import ConfigError
from engine.weights.dummy import DummySource
from engine.weights.source import Source

_INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16", "F64", "F8_E4M3")


def open_source(
    folder: Path, shape: ModelShape, load_format: LoadFormat, seed: int, device: torch.device | None = None
) -> Source:
    """The weights of a resolved checkpoint, or random ones of its shapes that depend on `seed` only.

    `device` is where random weights are made (default: the CPU).
    """
    if load_format == "dummy":
        return DummySource(shape, seed, device)
    return CheckpointSource(folder)


class CheckpointSource(Source):
    """The safetensors files of a folder. Files are mapped, so a part costs only its own bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handles: dict[Path, Any] = {}
        self._files = self._find_files()

    def _find_files(self) -> dict[str, Path]:
        """The file of each tensor: as the index says, else as the files say."""
        index = self._folder / _INDEX
        if index.is_file():
            try:
                return {name: self._folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
                raise ConfigError(f"{index} is not a safetensors index: download the checkpoint again") from None
        files = sorted(self._folder.glob("*.safetensors"))
        return {name: file for file in files for name in self._open(file).keys()}  # noqa: SIM118 (no mapping)

    def _open(self, file: Path) -> Any:
        if file not in self._handles:
            try:
                self._handles[file] = safe_open(file, framework="pt", device="cpu")
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"cannot read {file} ({error}): download the checkpoint again") from None
        return self._handles[file]

    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        file = self._files.get(name)
        if file is None:
            raise ConfigError(f"the checkpoint {self._folder} has no tensor {name}: is it a complete checkpoint?")
        try:
            whole = self._open(file).get_slice(name)
        except SafetensorError:
            raise ConfigError(f"{file} has no tensor {name}, which the index promises: download it again") from None
        found = tuple(whole.get_shape())
        if shape == (1,) and not found:  # one number, written either way
            return self._open(file).get_tensor(name).reshape(1)
        if found != shape:
            raise ConfigError(f"{name} in {file} has shape {found} but config.json implies {shape}")
        if whole.get_dtype() not in _FLOATS:
            raise ConfigError(f"{name} in {file} is {whole.get_dtype()}: quantised checkpoints are not supported")
        view: torch.Tensor = whole[part.start : part.stop] if dim == 0 else whole[:, part.start : part.stop]
        return view
