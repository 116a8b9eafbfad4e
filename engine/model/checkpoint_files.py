"""Which tensors a checkpoint's files hold: by the headers of its safetensors files, no torch, no numbers read.

`engine.model.config_json` asks what config.json leaves open, `engine.weights` checks and opens the files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.json_file import MOST_BYTES, parse_object, read_object

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHERS = ("consolidated", "adapter_model")  # Mistral's own format, whose names differ, and what needs a base model
_CHUNK_BYTES = 1 << 24
_AGAIN = "download the checkpoint again"
_MOST_DIMS, _MOST_ITEMS = 16, 2**63 - 1
# Of safetensors' dtypes, those of whole bytes.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


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
                    f"{_AGAIN}"
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
    if (folder / _WHOLE).exists():
        return [folder / _WHOLE]
    if (folder / _INDEX).exists():
        return _indexed_files(folder)
    files = [file for file in sorted(folder.glob("*.safetensors")) if not file.name.startswith(_OTHERS)]
    if not files:
        raise ConfigError(_what_instead(folder))
    return files


def _indexed_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    named = read_object(index, _AGAIN).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ConfigError(f"{index} is not a safetensors index: {_AGAIN}")
    names = sorted({Path(name) for name in named.values()})
    if outside := [name for name in names if name.is_absolute() or ".." in name.parts]:
        raise ConfigError(f"{index} names {outside[0]}, which is not in its folder: {_AGAIN}")
    files = [folder / name for name in names]
    missing = [file.name for file in files if not _is_there(file)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{index} names {missing[0]}{more}, not in the folder: {_AGAIN}")
    return files


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except (OSError, ValueError):  # a name too long, or with a zero
        return False


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
    """By name. A header is its length, in eight bytes, and JSON; the numbers follow, without gaps."""
    try:
        if not file.is_file():
            raise ValueError("it is no regular file")
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MOST_BYTES:
                raise ValueError("its header is too long")
            header = parse_object(stream.read(length), f"the header of {file}", _AGAIN)
        header.pop("__metadata__", None)
        tensors = {name: _stored(file, 8 + length, name, header[name]) for name in sorted(header)}
        found, promised = file.stat().st_size, _end(tensors.values(), 8 + length)
        if found != promised:
            raise ValueError(f"it has {found} bytes instead of {promised}")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file} ({error}): {_AGAIN}") from None
    return tensors


def _stored(file: Path, base: int, name: str, entry: Any) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*sizes], "data_offsets": [int(start), int(stop)]}:
            shape = tuple(size for size in sizes[:_MOST_DIMS] if type(size) is int and 0 <= size <= _MOST_ITEMS)
            item_bytes = _ITEM_BYTES.get(dtype)  # None: of a kind that nobody here reads
            fits = item_bytes is None or math.prod(shape) * item_bytes == stop - start
            if len(shape) == len(sizes) and fits:
                return StoredTensor(file, dtype, shape, base + start, base + stop)
    raise ValueError(f"{name[:200]} is described as {str(entry)[:200]}")


def _end(tensors: Iterable[StoredTensor], base: int) -> int:
    """The byte where the last ends. Raises ValueError unless each begins where another ends, the first at `base`."""
    end = base
    for tensor in sorted(tensors, key=lambda each: (each.start, each.stop)):
        if tensor.start != end or tensor.stop < end:
            raise ValueError(f"a tensor from byte {tensor.start} to {tensor.stop} behind one that ends at {end}")
        end = tensor.stop
    return end
