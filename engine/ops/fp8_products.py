"""Products of numbers in 8 bits on GPUs: cuBLASLt's, and our own where it has none or only slow ones.

cuBLASLt scales by rows with one kernel, in tiles of 128 x 128, and never splits the sum: of few rows, or few columns,
most of a GPU has nothing to do. `docs/performance.md` says how much faster ours is there. By groups it scales on Hopper
alone, and only whole blocks.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from seesaw.engine.model.quantization import BLOCK
from seesaw.engine.ops.fp8 import E4M3, Quantized

_SCALE_MULTIPLE = 4  # cuBLASLt wants so many scales beside each other, of rows and of groups
_FEW_ROWS = 16  # up to so many, reading the weights is all that counts
_THIN_ROWS = 128  # up to so many, ours is faster whatever the weights
_ENOUGH_PROGRAMS = 60  # to keep a GPU reading: beyond, adding up the parts takes longer than splitting saves


class _Tile(NamedTuple):
    """What a program of a thin product takes: the measured best (Hopper)."""

    rows: int
    columns: int
    steps: tuple[int, ...]  # terms of the sums at once: the first that divides them
    stages: int
    warps: int

    def programs(self, rows: int, columns: int) -> int:
        """Of a product of so many rows and columns."""
        return triton.cdiv(rows, self.rows) * triton.cdiv(columns, self.columns)

    @property
    def shared_bytes(self) -> int:
        return self.stages * (self.rows + self.columns) * self.steps[0]


_NARROW = _Tile(64, 64, (256, 128), stages=5, warps=4)
_THIN = _Tile(128, 64, (256, 128), stages=4, warps=4)
_WIDE = _Tile(128, 128, (128,), stages=3, warps=8)


def product(
    x: Quantized,
    data: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`[rows, in]` times `[out, in]`, both in 8 bits, with one scale for each row of both; to bfloat16."""
    rows, inner = x.data.shape
    tile = _tile(rows, len(data), data.device)
    split = None if tile is None else _split(rows, len(data), inner, tile)
    if tile is not None and split is not None:
        if out is None:
            out = torch.empty(rows, len(data), dtype=dtype, device=data.device)
        _launch_thin(x, data, scales, bias, out, tile, *split)
        return out
    result = torch._scaled_mm(x.data, data.T, x.scales, scales[None], out_dtype=dtype, use_fast_accum=True, out=out)
    # Not in the product: for some sizes the library has no kernel that adds a bias.
    return result if bias is None else result.add_(bias)


def _tile(rows: int, columns: int, device: torch.device) -> _Tile | None:
    """Of our own product; None where cuBLASLt's is faster, or tiles do not fit (Ada's shared memory has no room)."""
    multiprocessors, shared_bytes = _limits(device)
    num_thin = _THIN.programs(rows, columns)
    if rows <= _THIN_ROWS and num_thin > 2 * multiprocessors:
        tile = _WIDE
    elif rows <= _NARROW.rows or _NARROW.programs(rows, columns) <= multiprocessors:
        tile = _NARROW
    elif rows <= _THIN_ROWS or num_thin <= multiprocessors:
        tile = _THIN
    else:
        return None
    return tile if tile.shared_bytes < shared_bytes else None


def _split(rows: int, columns: int, inner: int, tile: _Tile) -> tuple[int, int] | None:
    """Into how many sums of how many terms at once a thin product is split; None if it does not divide."""
    programs = tile.programs(rows, columns)
    for splits in (1, 2, 4, 8):
        if programs * splits >= _ENOUGH_PROGRAMS or splits == 8:
            return next(((splits, step) for step in tile.steps if inner % (splits * step) == 0), None)
    return None


@cache
def _limits(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and the bytes of shared memory that a program may have."""
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return properties["multiprocessor_count"], properties["max_shared_mem"]


@cache
def _counters(device: torch.device) -> torch.Tensor:
    """How many parts of each tile are there: zero between products, which follow one another on a device's stream."""
    return torch.zeros(1 << 16, dtype=torch.int32, device=device)


def _launch_thin(
    x: Quantized,
    data: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    tile: _Tile,
    splits: int,
    step: int,
) -> None:
    rows, inner = x.data.shape
    columns = len(data)
    parts = torch.empty(splits if splits > 1 else 0, rows, columns, dtype=torch.float32, device=data.device)
    _thin_product[triton.cdiv(columns, tile.columns), splits, triton.cdiv(rows, tile.rows)](
        x.data,
        x.scales,
        data,
        scales,
        bias,
        out,
        parts,
        _counters(data.device),
        rows,
        columns,
        inner,
        out.stride(0),
        ROWS=min(tile.rows, max(16, triton.next_power_of_2(rows))),
        COLUMNS=tile.columns,
        STEP=step,
        SPLITS=splits,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


@triton.jit(do_not_specialize=["rows"])  # the first step of some size must not wait for a compiler
def _thin_product(  # type: ignore[no-untyped-def]
    x,
    x_scales,
    weight,
    weight_scales,
    bias,
    out,
    parts,
    counters,
    rows,
    columns,
    inner,
    out_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Some rows, mostly all, and columns. Weights are the left side: there tensor cores want 64 rows, here are few."""
    tile, split = tl.program_id(0), tl.program_id(1)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    tile += tl.program_id(2) * tl.num_programs(0)
    each = inner // SPLITS
    k = split * each + tl.arange(0, STEP)
    column_mask, row_mask = column < columns, row < rows
    weight_at = weight + column.to(tl.int64)[:, None] * inner + k[None]
    x_at = x + row[None] * inner + k[:, None]
    total = tl.zeros((COLUMNS, ROWS), tl.float32)
    for _ in range(0, each, STEP):
        total = tl.dot(
            tl.load(weight_at, column_mask[:, None], other=0.0), tl.load(x_at, row_mask[None], other=0.0), total
        )
        weight_at += STEP
        x_at += STEP
    mask = column_mask[:, None] & row_mask[None]
    is_last = True
    if SPLITS > 1:
        # Whoever is last of a tile adds up all parts, always in the same order.
        part_at = parts + row[None] * columns + column[:, None]
        tl.store(part_at + split * rows * columns, total, mask)
        tl.debug_barrier()
        is_last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == SPLITS - 1
    if is_last:
        if SPLITS > 1:
            total = tl.zeros((COLUMNS, ROWS), tl.float32)
            for part in tl.static_range(SPLITS):
                total += tl.load(part_at + part * rows * columns, mask, other=0.0, cache_modifier=".cg")
            tl.store(counters + tile, 0)
        total *= tl.load(weight_scales + column, column_mask, other=0.0)[:, None]
        total *= tl.load(x_scales + row, row_mask, other=0.0)[None]
        if bias is not None:
            total += tl.load(bias + column, column_mask, other=0.0).to(tl.float32)[:, None]
        tl.store(out + row[None] * out_stride + column[:, None], total.to(out.dtype.element_ty), mask)


def grouped_product(
    x: Quantized,
    data: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `product`, with scales for groups of columns: x's are `[rows, groups]`, the weights' `[out, groups]` or, of
    blocks, `[out / 128, groups]`."""
    rows = len(x.data)
    block = len(data) // len(scales)
    is_hopper = torch.cuda.get_device_capability(data.device)[0] == 9  # the one GPU where cuBLASLt has these
    if is_hopper and block == BLOCK and rows > _FEW_ROWS and scales.shape[1] % _SCALE_MULTIPLE == 0:
        x, padding = _padded(x)
        target = None if padding else out
        result = torch._scaled_mm(x.data, data.T, x.scales, scales.T, out_dtype=dtype, out=target)
        if padding:
            result = result[:rows] if out is None else out.copy_(result[:rows])
        return result if bias is None else result.add_(bias)
    if out is None:
        out = torch.empty(rows, len(data), dtype=dtype, device=data.device)
    _launch_grouped(x, data, scales, bias, out, block)
    return out


def _padded(x: Quantized) -> tuple[Quantized, int]:
    """With as many rows as cuBLASLt takes, and how many those are more."""
    missing = -len(x.data) % _SCALE_MULTIPLE
    if not missing:
        return x, 0
    data = F.pad(x.data.view(torch.uint8), (0, 0, 0, missing)).view(E4M3)
    return Quantized(data, F.pad(x.scales.T, (0, missing)).T), missing


def _launch_grouped(
    x: Quantized, data: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, block: int
) -> None:
    rows, inner = x.data.shape
    columns, groups = len(data), scales.shape[1]
    block_rows = min(128, max(16, triton.next_power_of_2(rows)))
    block_columns = 128 if rows > 64 else 64
    _grouped_product[triton.cdiv(rows, block_rows) * triton.cdiv(columns, block_columns),](
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
        *x.scales.stride(),
        out.stride(0),
        GROUP=inner // groups,
        BLOCK_OF_ROWS=block,
        ROWS=block_rows,
        COLUMNS=block_columns,
        num_warps=4 if rows <= 64 else 8,
        num_stages=4,
    )


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
    scale_row_stride,
    scale_group_stride,
    out_stride,
    GROUP: tl.constexpr,
    BLOCK_OF_ROWS: tl.constexpr,
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
        a_scale = tl.load(x_scales + row * scale_row_stride + group * scale_group_stride, row_mask, other=0.0)
        b_scale = tl.load(weight_scales + column // BLOCK_OF_ROWS * groups + group, column_mask, other=0.0)
        total += tl.dot(a, b) * a_scale[:, None] * b_scale[None]
        x_at += GROUP
        weight_at += GROUP
    if bias is not None:
        total += tl.load(bias + column, column_mask, other=0.0).to(tl.float32)[None]
    target = out + row.to(tl.int64)[:, None] * out_stride + column[None]
    tl.store(target, total.to(out.dtype.element_ty), row_mask[:, None] & column_mask[None])
