"""Triton kernels that make numbers in 8 bits while something else is computed, and products of groups of columns.

Each rounds to the model's dtype where the plain operators do, so that the results are those of `engine.ops.fp8`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engine.ops.fp8 import E4M3, LARGEST, Fp8Format, Quantized

_LEAST_SCALE = tl.constexpr(1e-12)
_LARGEST = tl.constexpr(LARGEST)
_PIECE = 8192  # columns of a row that a program holds at once


def quantize(x: torch.Tensor, format: Fp8Format) -> Quantized:
    """See `engine.ops.fp8.quantize`. `[rows, columns]`, contiguous."""
    rows, columns = x.shape
    out = _empty(rows, columns, format, x.device)
    group, lanes, warps = _tile(columns, format)
    _quantize[(rows,)](
        x, out.data, out.scales, columns, GROUP=group, LANES=lanes, WIDE=format.group is None, num_warps=warps
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
        lanes = min(triton.next_power_of_2(columns), _PIECE)
        _silu_and_mul_rows[(rows,)](
            x, out.data, out.scales, columns, width // 2, LANES=lanes, num_warps=min(16, max(4, lanes // 512))
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
    groups = 1 if format.group is None else columns // format.group
    return Quantized(
        torch.empty(rows, columns, dtype=E4M3, device=device),
        torch.empty(rows, groups, dtype=torch.float32, device=device),
    )


def _tile(columns: int, format: Fp8Format) -> tuple[int, int, int]:
    """Columns that share a scale, lanes of a program over a row, warps."""
    lanes = triton.next_power_of_2(columns)
    return format.group or columns, lanes, min(16, max(4, lanes // 512))


@triton.jit
def _to_e4m3(values, scale):  # type: ignore[no-untyped-def]
    scaled = tl.div_rn(values, scale)
    return tl.minimum(tl.maximum(scaled, -_LARGEST), _LARGEST).to(tl.float8e4nv)


@triton.jit
def _scale_of(largest):  # type: ignore[no-untyped-def]
    return tl.maximum(largest * (1 / _LARGEST), _LEAST_SCALE)


@triton.jit
def _store_row(values, data, scales, row, columns, GROUP: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row of float32 values, zero behind its columns, with one scale or with one for each group."""
    lane = tl.arange(0, LANES)
    mask = lane < columns
    if WIDE:
        scale = _scale_of(tl.max(tl.abs(values), 0))
        tl.store(scales + row, scale)
        tl.store(data + row * columns + lane, _to_e4m3(values, scale), mask)
    else:
        groups = tl.reshape(values, (LANES // GROUP, GROUP))
        scale = _scale_of(tl.max(tl.abs(groups), 1))
        group = tl.arange(0, LANES // GROUP)
        tl.store(scales + row * (columns // GROUP) + group, scale, group < columns // GROUP)
        place = group[:, None] * GROUP + tl.arange(0, GROUP)[None]
        tl.store(data + row * columns + place, _to_e4m3(groups, scale[:, None]), place < columns)


@triton.jit
def _quantize(x, data, scales, columns, GROUP: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    values = tl.load(x + row * columns + lane, lane < columns, other=0.0).to(tl.float32)
    _store_row(values, data, scales, row, columns, GROUP, LANES, WIDE)


@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, residual, weight, data, scales, columns, eps, GROUP: tl.constexpr, LANES: tl.constexpr, WIDE: tl.constexpr
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
    _store_row(values.to(element).to(tl.float32), data, scales, row, columns, GROUP, LANES, WIDE)


@triton.jit
def _activated(x, row, columns, place, mask, width):  # type: ignore[no-untyped-def]
    """silu(gate) * up at some places of a row, where slices of `width` gates, then as many ups, follow each other."""
    source = x + row * 2 * columns + place // width * (2 * width) + place % width
    gate = tl.load(source, mask, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask, other=0.0).to(tl.float32)
    return (gate / (1.0 + tl.exp(-gate)) * up).to(x.dtype.element_ty).to(tl.float32)


@triton.jit
def _silu_and_mul_rows(x, data, scales, columns, width, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows are long: once for the largest, and once more, from the cache, for the numbers."""
    row = tl.program_id(0).to(tl.int64)
    largest = tl.zeros((LANES,), tl.float32)
    for start in range(0, columns, LANES):
        place = start + tl.arange(0, LANES)
        largest = tl.maximum(largest, tl.abs(_activated(x, row, columns, place, place < columns, width)))
    scale = _scale_of(tl.max(largest, 0))
    tl.store(scales + row, scale)
    for start in range(0, columns, LANES):
        place = start + tl.arange(0, LANES)
        mask = place < columns
        tl.store(data + row * columns + place, _to_e4m3(_activated(x, row, columns, place, mask, width), scale), mask)


@triton.jit
def _silu_and_mul_groups(x, data, scales, groups, width, GROUP: tl.constexpr, LANES: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1) * 16 + tl.arange(0, 16)[:, None]
    lane = tl.arange(0, LANES)[None]
    mask = (group < groups) & (lane < GROUP)
    place = group * GROUP + lane
    values = _activated(x, row, groups * GROUP, place, mask, width)
    scale = _scale_of(tl.max(tl.abs(values), 1, keep_dims=True))
    tl.store(scales + row * groups + group, scale, group < groups)
    tl.store(data + row * groups * GROUP + place, _to_e4m3(values, scale), mask)


def grouped_product(
    x: Quantized,
    data: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[rows, in]` times `[out, in]`, both in 8 bits with scales for groups of columns, `[rows, groups]` each."""
    rows, inner = x.data.shape
    columns, groups = scales.shape
    if out is None:
        out = torch.empty(rows, columns, dtype=dtype, device=x.data.device)
    block_rows = 16 if rows <= 16 else 32 if rows <= 32 else 64 if rows <= 64 else 128
    block_columns = 128 if rows > 64 else 64
    grid = (triton.cdiv(rows, block_rows) * triton.cdiv(columns, block_columns),)
    _grouped_product[grid](
        x.data,
        x.scales,
        data,
        scales,
        bias,
        out,
        rows,
        columns,
        inner,
        groups,
        out.stride(0),
        GROUP=inner // groups,
        ROWS=block_rows,
        COLUMNS=block_columns,
        num_warps=4 if rows <= 64 else 8,
        num_stages=4,
    )
    return out


@triton.jit(do_not_specialize=["rows"])  # the first step of some size must not wait for a compiler
def _grouped_product(  # type: ignore[no-untyped-def]
    x,
    x_scales,
    weight,
    weight_scales,
    bias,
    out,
    rows,
    columns,
    inner,
    groups,
    out_stride,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # Programs of the same weights follow one another, eight blocks of rows at a time: they find these in the cache.
    row_blocks, column_blocks = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    band = tl.program_id(0) // (8 * column_blocks)
    band_rows = tl.minimum(row_blocks - band * 8, 8)
    within = tl.program_id(0) % (8 * column_blocks)
    row = (band * 8 + within % band_rows) * ROWS + tl.arange(0, ROWS)
    column = within // band_rows * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, GROUP)
    row_mask, column_mask = row < rows, column < columns
    x_at = x + row.to(tl.int64)[:, None] * inner + k[None]
    weight_at = weight + column.to(tl.int64)[None] * inner + k[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for group in range(groups):
        a = tl.load(x_at, row_mask[:, None], other=0.0)
        b = tl.load(weight_at, column_mask[None], other=0.0)
        a_scale = tl.load(x_scales + row * groups + group, row_mask, other=0.0)
        b_scale = tl.load(weight_scales + column * groups + group, column_mask, other=0.0)
        total += tl.dot(a, b) * a_scale[:, None] * b_scale[None]
        x_at += GROUP
        weight_at += GROUP
    if bias is not None:
        total += tl.load(bias + column, column_mask, other=0.0).to(tl.float32)[None]
    target = out + row.to(tl.int64)[:, None] * out_stride + column[None]
    tl.store(target, total.to(out.dtype.element_ty), row_mask[:, None] & column_mask[None])
