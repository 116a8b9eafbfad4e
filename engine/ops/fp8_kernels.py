"""Triton kernels that round to 8 bits what something else just computed: norms, activations, attention's output.

Each rounds to the model's dtype where the plain operators do, so that the results are those of `engine.ops.fp8`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.engine.ops.fp8 import E4M3, LARGEST, LEAST_SCALE, Fp8Format, Quantized

_LEAST_SCALE = tl.constexpr(LEAST_SCALE)
_LARGEST = tl.constexpr(LARGEST)


def quantize(x: torch.Tensor, format: Fp8Format) -> Quantized:
    """See `engine.ops.fp8.quantize`. `[rows, columns]`, contiguous."""
    rows, columns = x.shape
    out = _empty(rows, columns, format, x.device)
    group, lanes, warps = _tile(columns, format)
    _quantize[(rows,)](
        x,
        format.scale,
        out.data,
        out.scales,
        columns,
        GROUP=group,
        LANES=lanes,
        WIDE=format.group is None,
        num_warps=warps,
    )
    return out


def add_norm(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, format: Fp8Format
) -> Quantized:
    """RMS norm of `[rows, columns]`, in 8 bits. A residual stream is added first, in place."""
    rows, columns = x.shape
    out = _empty(rows, columns, format, x.device)
    group, lanes, warps = _tile(columns, format)
    _add_norm[(rows,)](
        x,
        residual,
        weight,
        format.scale,
        out.data,
        out.scales,
        columns,
        eps,
        GROUP=group,
        LANES=lanes,
        WIDE=format.group is None,
        num_warps=warps,
    )
    return out


def silu_and_mul(x: torch.Tensor, format: Fp8Format) -> Quantized:
    """`[rows, slices, 2 * f]` to `[rows, slices * f]` in 8 bits; see `Ops.silu_and_mul`."""
    rows, slices, width = x.shape
    columns = slices * width // 2
    out = _empty(rows, columns, format, x.device)
    if format.group is None:
        lanes = triton.next_power_of_2(columns)
        _silu_and_mul_rows[(rows,)](
            x,
            format.scale,
            out.data,
            out.scales,
            columns,
            width // 2,
            LANES=lanes,
            ONE_SLICE=slices == 1,
            num_warps=min(32, max(4, lanes // 512)),
        )
    else:
        groups = columns // format.group
        _silu_and_mul_groups[(rows, triton.cdiv(groups, 16))](
            x,
            out.data,
            out.scales,
            groups,
            width // 2,
            GROUP=format.group,
            LANES=triton.next_power_of_2(format.group),
            num_warps=4,
        )
    return out


def _empty(rows: int, columns: int, format: Fp8Format, device: torch.device) -> Quantized:
    """Scales of groups lie group by group: so cuBLASLt wants them."""
    groups = 1 if format.group is None else columns // format.group
    return Quantized(
        torch.empty(rows, columns, dtype=E4M3, device=device),
        torch.empty(groups, rows, dtype=torch.float32, device=device).T,
    )


def _tile(columns: int, format: Fp8Format) -> tuple[int, int, int]:
    """Columns that share a scale, lanes of a program over a row, warps."""
    lanes = triton.next_power_of_2(columns)
    return format.group or columns, lanes, min(16, max(4, lanes // 512))


@triton.jit
def to_e4m3(values, scale):  # type: ignore[no-untyped-def]
    scaled = tl.div_rn(values, scale)
    return tl.minimum(tl.maximum(scaled, -_LARGEST), _LARGEST).to(tl.float8e4nv)


@triton.jit
def scale_of(largest):  # type: ignore[no-untyped-def]
    return tl.maximum(largest * (1 / _LARGEST), _LEAST_SCALE)


@triton.jit
def _store_row(values, known, data, scales, row, columns, GROUP: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row of float32 values, zero behind its columns, with a scale that is known, or one, or one for each group."""
    lane = tl.arange(0, LANES)
    mask = lane < columns
    if WIDE:
        if known is not None:
            scale = tl.load(known)
        else:
            scale = scale_of(tl.max(tl.abs(values), 0))
        tl.store(scales + row, scale)
        tl.store(data + row * columns + lane, to_e4m3(values, scale), mask)
    else:
        groups = tl.reshape(values, (LANES // GROUP, GROUP))
        scale = scale_of(tl.max(tl.abs(groups), 1))
        group = tl.arange(0, LANES // GROUP)
        tl.store(scales + row + group * tl.num_programs(0), scale, group < columns // GROUP)
        place = group[:, None] * GROUP + tl.arange(0, GROUP)[None]
        tl.store(data + row * columns + place, to_e4m3(groups, scale[:, None]), place < columns)


@triton.jit
def _quantize(x, known, data, scales, columns, GROUP: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    values = tl.load(x + row * columns + lane, lane < columns, other=0.0).to(tl.float32)
    _store_row(values, known, data, scales, row, columns, GROUP, LANES, WIDE)


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, residual, weight, known, data, scales, columns, eps, GROUP: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    mask = lane < columns
    element = x.dtype.element_ty
    values = tl.load(x + row * columns + lane, mask, other=0.0).to(tl.float32)
    if residual is not None:
        values += tl.load(residual + row * columns + lane, mask, other=0.0).to(tl.float32)
        tl.store(residual + row * columns + lane, values.to(element), mask)
    factor = tl.rsqrt(tl.sum(values * values, 0) / columns + eps)
    values = values * factor * tl.load(weight + lane, mask, other=0.0).to(tl.float32)
    _store_row(values.to(element).to(tl.float32), known, data, scales, row, columns, GROUP, LANES, WIDE)


@triton.jit
def _activated(x, row, columns, place, mask, width, ONE_SLICE: tl.constexpr):  # type: ignore[no-untyped-def]
    """silu(gate) * up at some places of a row, where slices of `width` gates, then as many ups, follow each other."""
    source = x + row * 2 * columns + (place if ONE_SLICE else place // width * (2 * width) + place % width)
    gate = tl.load(source, mask, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask, other=0.0).to(tl.float32)
    return (gate / (1.0 + tl.exp(-gate)) * up).to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def _silu_and_mul_rows(x, known, data, scales, columns, width, LANES: tl.constexpr, ONE_SLICE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, LANES)
    values = _activated(x, row, columns, place, place < columns, width, ONE_SLICE)
    _store_row(values, known, data, scales, row, columns, LANES, LANES, True)


@triton.jit
def _silu_and_mul_groups(x, data, scales, groups, width, GROUP: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * 16 + tl.arange(0, 16)[:, None]
    lane = tl.arange(0, LANES)[None]
    mask = (group < groups) & (lane < GROUP)
    place = group * GROUP + lane
    values = _activated(x, row, groups * GROUP, place, mask, width, False)
    scale = scale_of(tl.max(tl.abs(values), 1, keep_dims=True))
    tl.store(scales + row + group * tl.num_programs(0), scale, group < groups)
    tl.store(data + row * groups * GROUP + place, to_e4m3(values, scale), mask)
