"""Which tensors a checkpoint's files hold: by the headers of its safetensors files, no torch, no numbers read.

`engine.model.config_json` asks what config.json leaves open, `engine.weights` checks and opens the files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.values.errors import ConfigError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHERS = ("consolidated", "adapter_model")  # Mistral's own format, whose names differ, and what needs a base model
_LARGEST_HEADER_BYTES = 100_000_000  # as safetensors
_CHUNK_BYTES = 1 << 24


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is. `dtype` is as safetensors writes it: BF16, F32, F8_E4M3, I8, ..."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # bytes in the file
    stop: int


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name, in the order of file and name.

    Raises ConfigError if files are missing, broken, of another format, or hold the same tensor.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        for name, tensor in _read_header(file).items():
            if name in tensors:
                raise ConfigError(
                    f"{name} is both in {tensors[name].file} and in {file.name}: keep the file that is meant, or "
                    "download the checkpoint again"
                )
            tensors[name] = tensor
    return tensors


def same_numbers(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors are equal, byte for byte. Different ones cost little: they mostly differ at the start."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.start)
        second.seek(other.start)
        left = one.stop - one.start
        while left > 0:
            size = min(left, _CHUNK_BYTES)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers loads: model.safetensors, whatever lies beside it, else all that the index names.

    Without either, which transformers refuses and vLLM does not, all safetensors files of this format.
    """
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} holds an adapter (adapter_config.json), which is not applied: give the base model, or one that "
            "the adapter was merged into (peft's merge_and_unload)"
        )
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if (folder / _INDEX).is_file():
        return _indexed_files(folder)
    files = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(_OTHERS)]
    if not files:
        raise ConfigError(_what_instead(folder))
    return files


def _indexed_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
    except (OSError, ValueError, RecursionError, KeyError, AttributeError, TypeError):
        raise ConfigError(f"{index} is not a safetensors index: download the checkpoint again") from None
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{index} names {missing[0]}{more}, not in the folder: download the checkpoint again")
    return files


def _what_instead(folder: Path) -> str:
    if any(folder.glob("pytorch_model*")):
        return (
            f"{folder} has its weights as pytorch_model.bin, which is not read: convert them to safetensors with "
            'transformers, AutoModelForCausalLM.from_pretrained(folder, dtype="auto").save_pretrained(new_folder)'
        )
    if any(folder.glob("consolidated*")):
        return (
            f"{folder} has its weights in the format of their makers (consolidated.*), which is not read: use the "
            "model*.safetensors of the same model"
        )
    if any(folder.glob("*.gguf")):
        return f"{folder} has its weights as GGUF, which is not read: use the safetensors of the same model"
    return f"no *.safetensors in {folder}: give a checkpoint with weights, or use --load-format dummy for random ones"


def _read_header(file: Path) -> dict[str, StoredTensor]:
    """By name. A header is its length, in eight bytes, and JSON; the numbers follow."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > _LARGEST_HEADER_BYTES:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {name: _stored(file, 8 + length, header[name]) for name in sorted(header)}
        found, promised = file.stat().st_size, max((tensor.stop for tensor in tensors.values()), default=8 + length)
        if found != promised:
            raise ValueError(f"it has {found} bytes instead of {promised}")
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"cannot read {file} ({error}): download the checkpoint again") from None
    return tensors


def _stored(file: Path, base: int, entry: Mapping[str, Any]) -> StoredTensor:
    start, stop = entry["data_offsets"]
    if not (isinstance(start, int) and isinstance(stop, int) and 0 <= start <= stop):
        raise ValueError(f"a tensor from byte {start} to {stop}")
    return StoredTensor(file, str(entry["dtype"]), tuple(map(int, entry["shape"])), base + start, base + stop)
