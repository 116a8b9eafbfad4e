"""Reading checkpoints: what is found, converted and packed, and what is refused in one clear sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from seesaw.engine.model.config_json import read_shape
from seesaw.engine.model.linear import Linear
from seesaw.engine.model.stage import StageWeights
from seesaw.engine.parallel.moves import Span
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.arena import Arena
from seesaw.engine.weights.filling import fill
from seesaw.engine.weights.loader import CheckpointSource
from tests.tiny import write_tiny_checkpoint

FILE = "model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "model", layers=2, kv_heads=2)


def _load(folder: Path, num_slices: int = 1, **changes: Any) -> StageWeights:
    shape = replace(read_shape(folder), **changes)
    arena = Arena(shape, num_slices, Span(0, shape.num_layers + 2), Span(0, num_slices))
    flat = torch.full((arena.total_bytes,), 0xFF, dtype=torch.uint8)
    fill(arena, flat, CheckpointSource(folder))
    return arena.stage(flat)


def _linear(stage: StageWeights, layer: int, name: str) -> torch.Tensor:
    linear = stage.layers[layer][name]
    assert isinstance(linear, Linear)
    return linear.data


def _assert_same_layers(one: StageWeights, other: StageWeights) -> None:
    for a, b in zip(one.layers, other.layers, strict=True):
        for x, y in zip(a.values(), b.values(), strict=True):
            if isinstance(x, Linear):
                x, y = x.data, y.data
            assert isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and torch.equal(x, y)


def test_packing(folder: Path) -> None:
    """Four slices of 8 heads over 2 KV heads: two query heads each, and every KV head in two slices."""
    raw = load_file(folder / FILE)
    loaded = _load(folder, num_slices=4)
    attention, mlp = "model.layers.1.self_attn.", "model.layers.1.mlp."
    for slice_, rows in enumerate(_linear(loaded, 1, "qkv").view(4, 32, 64)):
        head = slice_ // 2
        torch.testing.assert_close(rows[:16], raw[attention + "q_proj.weight"][slice_ * 16 : slice_ * 16 + 16])
        torch.testing.assert_close(rows[16:24], raw[attention + "k_proj.weight"][head * 8 : head * 8 + 8])
        torch.testing.assert_close(rows[24:], raw[attention + "v_proj.weight"][head * 8 : head * 8 + 8])
    for slice_, rows in enumerate(_linear(loaded, 1, "gate_up").view(4, 48, 64)):
        torch.testing.assert_close(rows[:24], raw[mlp + "gate_proj.weight"][slice_ * 24 : slice_ * 24 + 24])
        torch.testing.assert_close(rows[24:], raw[mlp + "up_proj.weight"][slice_ * 24 : slice_ * 24 + 24])
    torch.testing.assert_close(_linear(loaded, 1, "o"), raw[attention + "o_proj.weight"])
    torch.testing.assert_close(_linear(loaded, 1, "down"), raw[mlp + "down_proj.weight"])
    torch.testing.assert_close(loaded.layers[0]["post_norm"], raw["model.layers.0.post_attention_layernorm.weight"])
    assert loaded.head is not None and loaded.head.data.shape == (212, 64)
    torch.testing.assert_close(loaded.head.data[:211], raw["lm_head.weight"])
    assert loaded.head.data[211:].count_nonzero() == 0


def test_slices_that_are_all_padding(tmp_path: Path) -> None:
    loaded = _load(write_tiny_checkpoint(tmp_path, layers=1, vocab=5), num_slices=4)
    assert loaded.embed is not None
    assert loaded.embed.shape == (8, 64)
    assert loaded.embed[5:].count_nonzero() == 0


def test_several_files_are_as_one(folder: Path, tmp_path: Path) -> None:
    sharded = write_tiny_checkpoint(tmp_path / "sharded", layers=2, kv_heads=2, max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, several = _load(folder), _load(sharded)
    _assert_same_layers(one, several)
    (sharded / "model.safetensors.index.json").unlink()  # without the index, the files say what they hold
    _assert_same_layers(_load(sharded), several)


def test_dtype_is_converted(folder: Path) -> None:
    wide, narrow = _load(folder), _load(folder, dtype="bfloat16")
    assert _linear(narrow, 0, "qkv").dtype == torch.bfloat16
    torch.testing.assert_close(_linear(narrow, 0, "qkv"), _linear(wide, 0, "qkv").bfloat16(), rtol=0, atol=0)


def test_only_the_part_is_read(folder: Path) -> None:
    source = CheckpointSource(folder)
    name = "model.layers.0.mlp.down_proj.weight"
    whole = source.read(name, (64, 96), Span(0, 64))
    assert torch.equal(source.read(name, (64, 96), Span(8, 20), dim=1), whole[:, 8:20])
    assert torch.equal(source.read(name, (64, 96), Span(3, 5)), whole[3:5])


def _rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / FILE) | {name: tensor for name, tensor in change.items() if tensor is not None}
    save_file({name: tensor for name, tensor in tensors.items() if change.get(name, tensor) is not None}, folder / FILE)


def test_missing_tensor(folder: Path) -> None:
    _rewrite(folder, {"model.layers.1.mlp.up_proj.weight": None})
    with pytest.raises(ConfigError, match=r"model has no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        _load(folder)


def test_missing_head(folder: Path) -> None:
    _rewrite(folder, {"lm_head.weight": None})
    with pytest.raises(ConfigError, match=r"no tensor lm_head\.weight"):
        _load(folder)
    tied = _load(folder, tied=True)
    assert tied.head is not None and tied.embed is not None
    assert tied.head.data.data_ptr() == tied.embed.data_ptr()


def test_wrong_shape(folder: Path) -> None:
    _rewrite(folder, {"model.norm.weight": torch.ones(63)})
    with pytest.raises(ConfigError, match=r"model\.norm\.weight in .*model\.safetensors has shape \(63,\) but"):
        _load(folder)


def test_ones_at_the_end_of_a_shape_do_not_matter(folder: Path) -> None:
    """Scales have them, or have none. In front they would: `[1, 64]` may be the scales of columns."""
    _rewrite(folder, {"model.norm.weight": torch.arange(64.0)[:, None]})
    assert CheckpointSource(folder).read("model.norm.weight", (64,), Span(3, 5)).tolist() == [3, 4]
    _rewrite(folder, {"model.norm.weight": torch.ones(1, 64)})
    for shape in ((64,), (64, 1), (1,)):
        with pytest.raises(ConfigError, match=r"has shape \(1, 64\) but"):
            CheckpointSource(folder).read("model.norm.weight", shape, Span(0, 1))


def test_quantised_tensor_of_another_name(folder: Path) -> None:
    """As AutoGPTQ's, which config.json need not mention."""
    name = "model.layers.0.mlp.up_proj."
    _rewrite(folder, {name + "weight": None, name + "qweight": torch.ones(8, 96, dtype=torch.int32)})
    with pytest.raises(ConfigError, match=rf"has {name}weight quantized, which is not supported"):
        _load(folder)


def test_quantised_tensor(folder: Path) -> None:
    _rewrite(folder, {"model.layers.0.mlp.up_proj.weight": torch.ones(96, 64, dtype=torch.int8)})
    with pytest.raises(ConfigError, match=r"up_proj\.weight in .* is I8: quantised"):
        _load(folder)


def test_a_broken_file(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path, layers=2, max_shard_size="60KB")
    second = sorted(folder.glob("*.safetensors"))[1]
    content = second.read_bytes()
    second.write_bytes(content[:100])
    with pytest.raises(ConfigError, match=f"{second.name} .*: download the checkpoint again"):
        _load(folder)
