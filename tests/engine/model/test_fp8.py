"""Models in 8 bits against plain emulations of the same arithmetic, on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.quantization import FP8, Quantization
from seesaw.engine.ops.fp8 import E4M3, Fp8Format, quantize
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError
from tests import tiny
from tests.quantized import (
    Emulated,
    EmulatedBlocks,
    emulated_model,
    in_blocks,
    logits_of,
    rounded,
    rounded_kv,
    write_blocks,
    write_quantized,
)
from tests.tiny import LocalModel, write_tiny_checkpoint

TOKENS = torch.randint(0, 211, (37,), generator=torch.Generator().manual_seed(1)).tolist()
SIZES: dict[str, Any] = {"heads": 8, "kv_heads": 2, "head_dim": 32, "hidden": 256, "ffn": 512, "std": 0.06}


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("floats"), **SIZES)


def test_rounded_while_read(folder: Path) -> None:
    """One rank computes what the emulation does; several sum in another order, and round other inputs for it."""
    floats = tiny.reference_logits(folder, TOKENS)
    changes = {"quantization": Quantization()}
    want = logits_of(emulated_model(folder, rounded), TOKENS)
    away = error(want, floats)
    assert 0.01 < away < 0.3  # so that the comparison below means something
    one = LocalModel(folder, Layout(), changes=changes).logits(TOKENS)
    assert error(one, want) < away / 20
    for text in ("T2", "T4", "P2", "T2P2"):
        assert error(LocalModel(folder, Layout.parse(text), changes=changes).logits(TOKENS), want) < away
    plan = Plan(Layout(pp=2), Layout(tp=2))  # weights cut for both
    assert torch.equal(LocalModel(folder, plan.prefill, plan=plan, changes=changes).logits(TOKENS), one)


def _compressed(strategy: str, dynamic: bool) -> dict[str, Any]:
    numbers = {"num_bits": 8, "type": "float"}
    activations = numbers | {"strategy": "token" if dynamic else "tensor", "dynamic": dynamic}
    group = {"targets": ["Linear"], "weights": numbers | {"strategy": strategy}, "input_activations": activations}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


AUTO_FP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}


def test_scales_with_a_dimension_more_or_fewer(folder: Path, tmp_path: Path) -> None:
    """Whoever writes them: `[out]` for `[out, 1]`, and one number as such, `[1]` or `[1, 1]`."""

    def logits(config: dict[str, Any], scale: tuple[int, ...], input_scale: tuple[int, ...] | None) -> torch.Tensor:
        def tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
            largest = weight.abs().amax(1) if -1 in scale else weight.abs().max()
            each = largest[:, None] if -1 in scale else largest
            made = {"weight": (weight / each * 448).to(E4M3), "weight_scale": (largest / 448).reshape(scale)}
            return made if input_scale is None else made | {"input_scale": torch.full(input_scale, 0.02)}

        quantized = write_quantized(folder, tmp_path / f"{scale}-{input_scale}", config, tensors)
        one = LocalModel(quantized, Layout()).logits(TOKENS)
        assert error(LocalModel(quantized, Layout.parse("T2P2")).logits(TOKENS), one) < 0.3
        return one

    channel = _compressed("channel", dynamic=True)
    assert torch.equal(logits(channel, (-1,), None), logits(channel, (-1, 1), None))
    want, *others = (logits(AUTO_FP8, shape, shape) for shape in ((1,), (1, 1), ()))
    assert all(torch.equal(got, want) for got in others)


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("strategy", ["channel", "tensor"])
def test_compressed_tensors(folder: Path, tmp_path: Path, strategy: str, dynamic: bool) -> None:
    made: dict[str, dict[str, torch.Tensor]] = {}

    def tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        largest = weight.abs().amax(1, keepdim=True) if strategy == "channel" else weight.abs().max().reshape(1)
        scale = largest / 448
        made[name] = {"weight": (weight / scale).to(E4M3), "weight_scale": scale.bfloat16().float()}
        if not dynamic:
            # Parts of one product have one input, and one scale for it.
            made[name]["input_scale"] = torch.tensor(0.02 if "down" in name else 0.01)
        return made[name]

    quantized = write_quantized(folder, tmp_path / "q", _compressed(strategy, dynamic), tensors)

    def layer(name: str, module: nn.Linear) -> Emulated:
        return Emulated(made[name]["weight"], made[name]["weight_scale"], made[name].get("input_scale"))

    want = logits_of(emulated_model(folder, layer), TOKENS)
    assert error(LocalModel(quantized, Layout()).logits(TOKENS), want) < 2e-3
    floats = tiny.reference_logits(folder, TOKENS)
    assert error(LocalModel(quantized, Layout.parse("T2P2")).logits(TOKENS), want) < error(want, floats)


def test_blocks_of_compressed_tensors(folder: Path, tmp_path: Path) -> None:
    """Their scales have another name."""
    config = _compressed("block", dynamic=True)
    config["config_groups"]["group_0"]["weights"]["block_structure"] = [128, 128]

    def tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        data, scales = in_blocks(weight)
        return {"weight": data, "weight_scale": scales}

    theirs = write_quantized(folder, tmp_path / "theirs", config, tensors)
    got = LocalModel(theirs, Layout()).logits(TOKENS)
    assert torch.equal(got, LocalModel(write_blocks(folder, tmp_path / "q"), Layout()).logits(TOKENS))


@pytest.mark.parametrize("changes", [{}, {"quantization": Quantization()}])
def test_8_bits_without_a_word_of_them(folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    quantized = write_blocks(folder, tmp_path / "q")
    shutil.copy(folder / "config.json", quantized)
    with pytest.raises(ConfigError, match=r"q_proj.weight is in 8 bits, and config.json says nothing of it: download"):
        LocalModel(quantized, Layout(), changes=changes)


def test_a_head_in_8_bits(folder: Path, tmp_path: Path) -> None:
    quantized = write_blocks(folder, tmp_path / "q")
    tensors = load_file(quantized / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(E4M3)
    save_file(tensors, quantized / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lm_head.weight is in 8 bits, which is not supported"):
        LocalModel(quantized, Layout())


@pytest.mark.parametrize("ffn", [512, 384])
def test_blocks(tmp_path: Path, ffn: int) -> None:
    """With 384, the slices of T2 and T4 end within blocks."""
    folder = write_tiny_checkpoint(tmp_path / "floats", **SIZES | {"ffn": ffn})
    quantized = write_blocks(folder, tmp_path / "q")
    want = logits_of(emulated_model(folder, lambda _, module: EmulatedBlocks(*in_blocks(module.weight))), TOKENS)
    assert error(LocalModel(quantized, Layout()).logits(TOKENS), want) < 2e-3
    floats = tiny.reference_logits(folder, TOKENS)
    for text in ("T2", "T4", "P2", "T2P2"):
        assert error(LocalModel(quantized, Layout.parse(text)).logits(TOKENS), want) < error(want, floats)


def test_a_product_is_the_emulations_bit_for_bit() -> None:
    torch.manual_seed(0)
    weight = torch.randn(48, 64)
    scale = weight.abs().amax(1) * (1 / 448)
    data = (weight / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn)
    x = torch.randn(7, 64)
    for dtype in (torch.float32, torch.bfloat16):
        linear = Linear(data, None, scale, dtype)
        assert linear.input_format is not None
        got = linear.product(quantize(x, linear.input_format))
        assert torch.equal(got, Emulated(data, scale)(x).to(dtype))
    assert linear.input_format == Fp8Format()


@pytest.mark.parametrize("text", ["T1", "T2P2"])
def test_a_kv_cache_in_8_bits(folder: Path, text: str) -> None:
    """Whole, in chunks, and token by token: what is read again was rounded, whoever reads it."""
    model = emulated_model(folder, lambda _, module: module)
    with rounded_kv(model):
        want = logits_of(model, TOKENS)
    local = LocalModel(folder, Layout.parse(text), changes={"kv_cache_dtype": FP8})
    table = list(range(10))
    got, start = [], 0
    for length in (20, 1, 9, 1, 1, 5):
        got.append(local.forward([(start, TOKENS[start : start + length])], [table]))
        start += length
    floats = tiny.reference_logits(folder, TOKENS)
    assert error(torch.cat(got), want) < 0.2 * error(want, floats)
