"""Models in 8 bits against plain emulations of the same arithmetic, on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from engine.model.linear import Linear
from engine.model.quantization import FP8, Quantization
from engine.model.shapes import ModelShape
from engine.ops.fp8 import E4M3, Fp8Format, quantize
from engine.parallel.layout import Layout, Plan
from tests import tiny
from tests.tiny import LocalModel, write_tiny_checkpoint

TOKENS = torch.randint(0, 211, (37,), generator=torch.Generator().manual_seed(1)).tolist()
SIZES: dict[str, Any] = {"heads": 8, "kv_heads": 2, "head_dim": 32, "hidden": 256, "ffn": 512, "std": 0.06}


class Emulated(nn.Module):
    """A linear layer whose weights and inputs are rounded to e4m3, written without any of our code."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, input_scale: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.scale, self.input_scale = weight.float(), scale.float().reshape(1, -1), input_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) * (1 / 448)
        if self.input_scale is not None:
            scale = self.input_scale.expand_as(scale)
        rounded = (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        return (rounded @ self.weight.T) * scale * self.scale


class EmulatedBlocks(nn.Module):
    """The same with a scale for each 128 x 128 of the weights, and for each 128 inputs of a token."""

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.weight = weight.float() * scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.unflatten(-1, (-1, 128))
        scale = parts.abs().amax(-1, keepdim=True) * (1 / 448)
        return ((parts / scale).to(torch.float8_e4m3fn).float() * scale).flatten(-2) @ self.weight.T


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            yield name, module


@torch.inference_mode()
def emulated_logits(folder: Path, layer: Any) -> torch.Tensor:
    """transformers' model of a float checkpoint, its layers replaced by what `layer(name, module)` makes of them."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, module in linears(model):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer(name, module))
    logits: torch.Tensor = model(torch.tensor([TOKENS])).logits[0]
    return logits


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("floats"), **SIZES)


def changed(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Have LocalModel read shapes with other numbers."""
    read = tiny.read_shape

    def as_asked(path: Path, dtype: str = "auto") -> ModelShape:
        return replace(read(path, dtype), **fields)

    monkeypatch.setattr(tiny, "read_shape", as_asked)


def test_rounded_while_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank computes what the emulation does; several sum in another order, and round other inputs for it."""

    def layer(name: str, module: nn.Linear) -> Emulated:
        scale = module.weight.abs().amax(1) * (1 / 448)
        return Emulated((module.weight / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn), scale)

    floats = tiny.reference_logits(folder, TOKENS)
    changed(monkeypatch, quantization=Quantization())
    want = emulated_logits(folder, layer)
    away = error(want, floats)
    assert 0.01 < away < 0.3  # so that the comparison below means something
    one = LocalModel(folder, Layout()).logits(TOKENS)
    assert error(one, want) < away / 20
    for text in ("T2", "T4", "P2", "T2P2"):
        assert error(LocalModel(folder, Layout.parse(text)).logits(TOKENS), want) < away
    plan = Plan(Layout(pp=2), Layout(tp=2))  # weights cut for both
    assert torch.equal(LocalModel(folder, plan.prefill, plan=plan).logits(TOKENS), one)


def write_quantized(folder: Path, target: Path, config: dict[str, Any], tensors: Any) -> Path:
    """A checkpoint like `folder`'s, whose linear layers are `tensors(name, weight)` by suffix."""
    raw = load_file(folder / "model.safetensors")
    for name in [name for name in raw if name.endswith("proj.weight")]:
        layer = name.removesuffix(".weight")
        for suffix, value in tensors(layer, raw.pop(name)).items():
            raw[f"{layer}.{suffix}"] = value.contiguous()
    target.mkdir()
    save_file(raw, target / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text()) | {"quantization_config": config}
    (target / "config.json").write_text(json.dumps(said))
    return target


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

    want = emulated_logits(folder, layer)
    assert error(LocalModel(quantized, Layout()).logits(TOKENS), want) < 2e-3
    floats = tiny.reference_logits(folder, TOKENS)
    assert error(LocalModel(quantized, Layout.parse("T2P2")).logits(TOKENS), want) < error(want, floats)


@pytest.mark.parametrize("ffn", [512, 384])
def test_blocks(tmp_path: Path, ffn: int) -> None:
    """With 384, the slices of T2 and T4 end within blocks."""
    folder = write_tiny_checkpoint(tmp_path / "floats", **SIZES | {"ffn": ffn})
    made: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, columns = weight.shape
        blocks = weight.unflatten(0, (-1, min(rows, 128))).unflatten(2, (-1, 128))
        scales = blocks.abs().amax((1, 3)) / 448
        each = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
        made[name] = (weight / each).to(E4M3), scales
        return {"weight": made[name][0], "weight_scale_inv": scales}

    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    quantized = write_quantized(folder, tmp_path / "q", config, tensors)
    want = emulated_logits(folder, lambda name, module: EmulatedBlocks(*made[name]))
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
def test_a_kv_cache_in_8_bits(folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, in chunks, and token by token: what is read again was rounded, whoever reads it."""
    from transformers import LlamaForCausalLM
    from transformers.models.llama import modeling_llama

    rotate = modeling_llama.apply_rotary_pos_emb

    def rounding(q: torch.Tensor, k: torch.Tensor, *rest: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = rotate(q, k, *rest, **named)
        return q, k.to(E4M3).float()

    class RoundedLinear(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).to(E4M3).float()

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, module in linears(model):
        if name.endswith("v_proj"):
            module.__class__ = RoundedLinear
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rounding)
    with torch.inference_mode():
        want = model(torch.tensor([TOKENS])).logits[0]
    changed(monkeypatch, kv_cache_dtype=FP8)
    local = LocalModel(folder, Layout.parse(text))
    table = list(range(10))
    got, start = [], 0
    for length in (20, 1, 9, 1, 1, 5):
        got.append(local.forward([(start, TOKENS[start : start + length])], [table]))
        start += length
    floats = tiny.reference_logits(folder, TOKENS)
    assert error(torch.cat(got), want) < 0.2 * error(want, floats)
