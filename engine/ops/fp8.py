"""Numbers in 8 bits, e4m3 with float32 scales: as values, and made in plain torch, the reference for every kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
LEAST_SCALE = 1e-12  # so that rows of zeros divide


class Fp8Format(NamedTuple):
    """What a product wants its inputs in. `group`: so many columns of a row share a scale; None: all of them."""

    group: int | None = None
    scale: torch.Tensor | None = None  # float32 [1]: the scale of all rows, where it is known beforehand


class Quantized(NamedTuple):
    """`data * scales`, where a row's columns share one scale, or its groups of columns one each."""

    data: torch.Tensor  # e4m3 [rows, columns]
    scales: torch.Tensor  # float32 [rows, 1] or [rows, groups]


Activation = torch.Tensor | Quantized
"""What goes into a product: `[rows, columns]`, in the model's dtype or in 8 bits."""


def quantize(x: torch.Tensor, format: Fp8Format) -> Quantized:
    """Round `[rows, columns]` of any float type. The largest of what shares a scale becomes e4m3's largest."""
    if format.scale is not None:
        return Quantized(divided(x, format.scale), format.scale.expand(len(x), 1))
    grouped = x if format.group is None else x.unflatten(-1, (-1, format.group))
    scales = scales_of(grouped.float().abs().amax(-1, keepdim=True))
    return Quantized(divided(grouped, scales).view(x.shape), scales if format.group is None else scales[..., 0])


def scales_of(largest: torch.Tensor) -> torch.Tensor:
    """Scales for what is at most so large, float32."""
    return (largest * (1 / LARGEST)).clamp_(min=LEAST_SCALE)  # CUDA divides by a number so, too


def divided(x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`x / scales` in e4m3. A conversion alone would make NaN of what rounding lifted over the largest."""
    return (x.float() / scales).clamp_(-LARGEST, LARGEST).to(E4M3)


def dequantized(data: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`[rows, columns]` float32 of e4m3 and scales `[rows, groups]`, `[rows, 1]` or `[blocks of rows, groups]`."""
    blocks, groups = scales.shape
    grouped = data.float().view(blocks, len(data) // blocks, groups, -1)
    return (grouped * scales[:, None, :, None]).view(data.shape)
