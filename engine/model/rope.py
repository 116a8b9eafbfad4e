"""Rotary positions: frequencies, and the rotation itself in plain torch."""

from __future__ import annotations

import math

import torch

from seesaw.engine.model.shapes import ModelShape


def inverse_frequencies(shape: ModelShape) -> torch.Tensor:
    """Radians per position of each pair of dimensions, `[head_dim / 2]` float32, as transformers computes them."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.int64).float() / shape.head_dim
    frequencies = 1.0 / (shape.rope_theta**exponents)
    rope = shape.rope
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "yarn":
        # Dimensions that turn often in the original context stay, those that hardly do are stretched by `factor`.
        stay = 1 - _yarn_ramp(shape)
        return 1.0 / (rope.factor * shape.rope_theta**exponents) * (1 - stay) + frequencies * stay
    if rope.kind == "llama3":
        # Short wavelengths stay, long ones are stretched by `factor`, those between are interpolated.
        wavelengths = 2 * math.pi / frequencies
        turns = rope.original_max_position / wavelengths
        smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        between = (1 - smooth) * frequencies / rope.factor + smooth * frequencies
        stretched = torch.where(turns < rope.low_freq_factor, frequencies / rope.factor, between)
        return torch.where(turns > rope.high_freq_factor, frequencies, stretched)
    return frequencies


def _yarn_ramp(shape: ModelShape) -> torch.Tensor:
    """From 0 at the pair of dimensions that turns `beta_fast` times to 1 at the one of `beta_slow`."""
    rope, dim = shape.rope, shape.head_dim

    def bound(turns: float) -> float:
        return dim * math.log(rope.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(shape.rope_theta))

    low, high = bound(rope.beta_fast), bound(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return ((torch.arange(dim // 2).float() - low) / ((high - low) or 0.001)).clamp(0, 1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate `[tokens, heads, head_dim]` by `cos` and `sin` `[tokens, 1, head_dim / 2]` float32; contiguous."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
