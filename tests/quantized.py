"""Quantized checkpoints of tiny models, and transformers' models that emulate them, without any of our code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

E4M3 = torch.float8_e4m3fn


class Emulated(nn.Module):
    """A linear layer whose weights and inputs are rounded to e4m3, as plainly as can be."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, input_scale: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.scale, self.input_scale = weight.float(), scale.float().reshape(1, -1), input_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) * (1 / 448)
        if self.input_scale is not None:
            scale = self.input_scale.expand_as(scale)
        rounded = (x / scale).clamp(-448, 448).to(E4M3).float()
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
        return ((parts / scale).to(E4M3).float() * scale).flatten(-2) @ self.weight.T


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            yield name, module


def rounded(name: str, module: nn.Linear) -> Emulated:
    """A float layer, rounded as `--quantization fp8` does."""
    scale = module.weight.abs().amax(1) * (1 / 448)
    return Emulated((module.weight / scale[:, None]).clamp(-448, 448).to(E4M3), scale)


def emulated_model(folder: Path, layer: Callable[[str, nn.Linear], nn.Module]) -> Any:
    """transformers' model of a float checkpoint, its layers replaced by what `layer(name, module)` makes of them."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, module in linears(model):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer(name, module))
    return model


class _RoundedOutput(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.module(x).to(E4M3).float()
        return out


@contextmanager
def rounded_kv(model: Any) -> Iterator[None]:
    """A Llama whose keys, once rotated, and values are rounded to 8 bits."""
    from transformers.models.llama import modeling_llama

    rotate = modeling_llama.apply_rotary_pos_emb

    def rounding(q: torch.Tensor, k: torch.Tensor, *rest: Any, **named: Any) -> tuple[torch.Tensor, torch.Tensor]:
        q, k = rotate(q, k, *rest, **named)
        return q, k.to(E4M3).float()

    for layer in model.model.layers:
        layer.self_attn.v_proj = _RoundedOutput(layer.self_attn.v_proj)
    modeling_llama.apply_rotary_pos_emb = rounding
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = rotate


@torch.inference_mode()
def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    """`[len(tokens), vocab]` float32."""
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


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


BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def in_blocks(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3, and a scale for each 128 x 128 of it. Rows are a multiple of 128, or fewer."""
    rows, columns = weight.shape
    blocks = weight.float().unflatten(0, (-1, min(rows, 128))).unflatten(2, (-1, 128))
    scales = blocks.abs().amax((1, 3)) / 448
    each = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
    return (weight.float() / each).to(E4M3), scales


def write_blocks(folder: Path, target: Path) -> Path:
    """A checkpoint as Qwen's in fp8, made of one in floats."""

    def tensors(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        data, scales = in_blocks(weight)
        return {"weight": data, "weight_scale_inv": scales}

    return write_quantized(folder, target, BLOCKS, tensors)
