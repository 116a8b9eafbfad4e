"""Which files of a folder are the checkpoint's: those that transformers loads, or one sentence."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seesaw.engine.model.checkpoint_files import same_numbers, stored_tensors
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.values.json_file import MOST_BYTES
from seesaw.engine.weights.checkpoint import resolve_checkpoint
from tests.tiny import layout_error, write_tiny_checkpoint

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"
TOKENS = [5, 3, 110, 7, 42, 5]


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "sharded", layers=1, max_shard_size="60KB")


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def test_headers_say_what_safetensors_reads(sharded: Path) -> None:
    tensors = stored_tensors(sharded)
    assert len({each.file for each in tensors.values()}) == len(_shards(sharded)) > 2
    for name, stored in tensors.items():
        tensor = load_file(stored.file)[name]
        assert (stored.shape, stored.dtype) == (tuple(tensor.shape), "F32")
        assert stored.file.read_bytes()[stored.start : stored.stop] == tensor.numpy().tobytes()


def test_same_numbers(tmp_path: Path) -> None:
    long = torch.arange(5_000_000)
    other = long.clone()
    other[-1] = 0
    save_file({"a": long, "b": long.clone(), "c": other, "d": long.int()}, tmp_path / WHOLE)
    a, b, c, d = stored_tensors(tmp_path).values()
    assert same_numbers(a, b) and not same_numbers(a, c) and not same_numbers(a, d)


def test_a_whole_file_goes_before_a_stale_index(sharded: Path, tmp_path: Path) -> None:
    whole = write_tiny_checkpoint(tmp_path / "whole", layers=1, seed=7)
    shutil.copy(whole / WHOLE, sharded)
    assert {stored.file.name for stored in stored_tensors(sharded).values()} == {WHOLE}
    assert layout_error(sharded, [Layout()], TOKENS) < 1e-4
    for shard in _shards(sharded):
        shard.unlink()  # what the index names need not be there
    assert resolve_checkpoint(str(sharded)).folder == sharded


def test_only_what_the_index_names_is_read(sharded: Path) -> None:
    """Mistral's repositories hold everything twice, in two formats."""
    norm = load_file(_shards(sharded)[0])
    save_file(norm, sharded / "consolidated.00.safetensors")
    save_file(norm, sharded / "model.fp16.safetensors")
    assert layout_error(sharded, [Layout()], TOKENS) < 1e-4
    (sharded / INDEX).unlink()
    with pytest.raises(ConfigError, match=r"is both in .*model-00001-of.*safetensors and in model\.fp16\.safetensors"):
        stored_tensors(sharded)
    (sharded / "model.fp16.safetensors").unlink()
    assert layout_error(sharded, [Layout()], TOKENS) < 1e-4


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    """transformers takes the last one's, vLLM the one that the index names."""
    first, *_, last = _shards(sharded)
    name, tensor = next(iter(load_file(first).items()))
    save_file(load_file(last) | {name: tensor + 1}, last)
    with pytest.raises(ConfigError, match=rf"{name} is both in .*{first.name} and in {last.name}: keep the file"):
        resolve_checkpoint(str(sharded))
    assert resolve_checkpoint(str(sharded), "dummy").folder == sharded


def test_an_index_that_names_the_wrong_file(sharded: Path) -> None:
    """transformers loads what the named files hold."""
    raw = json.loads((sharded / INDEX).read_text())
    first, *_, last = _shards(sharded)
    raw["weight_map"] |= {"model.embed_tokens.weight": last.name, NORM: first.name}
    (sharded / INDEX).write_text(json.dumps(raw))
    assert layout_error(sharded, [Layout()], TOKENS) < 1e-4


def test_an_index_that_names_missing_files(sharded: Path) -> None:
    first, second, *_ = _shards(sharded)
    first.unlink()
    with pytest.raises(ConfigError, match=rf"index\.json names {first.name}, not in the folder: download"):
        resolve_checkpoint(str(sharded))
    second.unlink()
    with pytest.raises(ConfigError, match=f"names {first.name} and 1 more, not in the folder"):
        resolve_checkpoint(str(sharded))
    assert resolve_checkpoint(str(sharded), "dummy").folder == sharded


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "holds no JSON object"),
        (b"{}", "is not a safetensors index"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b'{"weight_map": ' * 100_000, "is not valid JSON"),
        (b'{"weight_map": {"a": 3}}', "is not a safetensors index"),
        (b'{"weight_map": {"a": []}}', "is not a safetensors index"),
        (b'{"weight_map": [["a", "b"]]}', "is not a safetensors index"),
        (json.dumps({"weight_map": {"a": "x" * 300}}).encode(), "names x+, not in the folder"),
        (json.dumps({"weight_map": {"a": "a\0b"}}).encode(), "not in the folder"),
        (json.dumps({"weight_map": {"a": "../model.safetensors"}}).encode(), "which is not in its folder"),
        (json.dumps({"weight_map": {"a": "b/../../model.safetensors"}}).encode(), "which is not in its folder"),
        (json.dumps({"weight_map": {"a": "/dev/zero"}}).encode(), "which is not in its folder"),
        (b'{"weight_map": {}}' + b" " * MOST_BYTES, "has more than 32.0 MiB"),
    ],
)
def test_an_index_that_is_none(sharded: Path, content: bytes, says: str) -> None:
    (sharded / INDEX).write_bytes(content)
    with pytest.raises(ConfigError, match=f"{says}.*: download the checkpoint again"):
        stored_tensors(sharded)


@pytest.mark.parametrize("name", [WHOLE, "model-00001-of-00002.safetensors", INDEX, "generation_config.json"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_file_is_never_opened(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    """Reading a FIFO would wait for ever, and /dev/zero would never end."""
    folder = write_tiny_checkpoint(tmp_path, layers=1)
    for file in (WHOLE, "generation_config.json"):
        if name != "generation_config.json" or file == name:
            (folder / file).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(ConfigError, match=f"{name} .*is no regular file|{name} is no regular file"):
        read_shape(folder)
        stored_tensors(folder)


def _with_entry(content: bytes, entry: dict[str, Any]) -> bytes:
    """The file with another tensor in its header, called as a head is."""
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + length]) | {"lm_head.weight": entry}).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-4],
        lambda content: content + b"more",
        lambda content: b"<html>not found</html>",
        lambda content: (2).to_bytes(8, "little") + b"[]",
        lambda content: (9).to_bytes(8, "little") + b'{"a": {}}',
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [math.inf], "data_offsets": [0, 4]}),
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [1], "data_offsets": [-(10**6), 4]}),
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [1], "data_offsets": [2**64, 4]}),
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4]}),
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),  # of another's
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [3], "data_offsets": [0, 0]}),
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}),
        lambda content: _with_entry(content, {"dtype": "F32", "shape": [0] * 10**6, "data_offsets": [0, 0]}),
        lambda content: _with_entry(content, {"dtype": ["F32"], "shape": [0], "data_offsets": [0, 0]}),
    ],
)
def test_a_file_that_is_broken(tmp_path: Path, damage: object) -> None:
    assert callable(damage)
    folder = write_tiny_checkpoint(tmp_path, layers=1)
    (folder / WHOLE).write_bytes(damage((folder / WHOLE).read_bytes()))
    with pytest.raises(ConfigError, match=rf"{WHOLE} .*: download the checkpoint again"):
        resolve_checkpoint(str(folder))
    assert read_shape(folder).num_layers == 1  # from config.json, without its weights


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("pytorch_model.bin", r"as pytorch_model\.bin, .*convert them to safetensors .*save_pretrained"),
        ("pytorch_model.bin.index.json", r"as pytorch_model\.bin"),
        ("consolidated.safetensors", r"format of their makers .* use the model\*\.safetensors"),
        ("consolidated.00.pth", "format of their makers"),
        ("model-q4.gguf", "as GGUF"),
        ("adapter_config.json", "holds an adapter .* give the base model"),
        ("adapter_model.safetensors", r"no \*\.safetensors in .* --load-format dummy"),
    ],
)
def test_weights_of_other_formats(tmp_path: Path, file: str, says: str) -> None:
    folder = write_tiny_checkpoint(tmp_path, layers=1)
    (folder / WHOLE).unlink()
    (folder / file).write_text("{}")
    with pytest.raises(ConfigError, match=says):
        resolve_checkpoint(str(folder))
