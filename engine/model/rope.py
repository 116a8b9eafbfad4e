"""Rotary positions: frequencies, and the rotation itself in plain torch."""

from __future__ import annotations

import math

import torch

from engine.model.shapes import ModelShape


def inverse_frequencies(shape: ModelShape) -> torch.Tensor:
    """Radians per position of each pair of dimensions, `[head_dim / 2]` float32, as transformers computes them."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponents)
    rope = shape.rope
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "llama3":
        # Short wavelengths stay, long ones are stretched by `factor`, those between are interpolated.
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_max_position / wavelengths
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
        stretched = torch.where(turns < rope.low_freq_factor, frequencies / rope.factor, between)
        return torch.where(turns > rope.high_freq_factor, frequencies, stretched)
    return frequencies


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `[tokens, heads, head_dim]` by `cos` and `sin` `[tokens, 1, head_dim / 2]` float32; contiguous."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
