"""Triton kernels of the CUDA operators: what no library does in one pass. Used by `FlashInferOps` only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from seesaw.engine.ops.base import HeadNorms

_SAMPLE_BLOCK = 2048


def rope_and_write(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    places: torch.Tensor,
    norms: HeadNorms | None = None,
) -> torch.Tensor:
    """Norm and rotate q and k, write k and v into their blocks; see `Ops.rope_and_write` for q, k, v, kv and norms.

    `cos` and `sin` are float32 `[positions, head_dim / 2]`; `places` is int32 `[3, tokens]`: each token's position,
    block, and slot in the block. Returns q as `[tokens, heads, head_dim]`.
    """
    tokens, slices, heads, dim = q.shape
    kv_slices, kv_heads = k.shape[1:3]
    out = q.new_empty(tokens, slices * heads, dim)
    _rope_and_write[(tokens, slices)](
        q,
        k,
        v,
        out,
        kv,
        cos,
        sin,
        places,
        norms.query if norms else None,
        norms.key if norms else None,
        norms.eps if norms else 0.0,
        places.stride(0),
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        kv.stride(0),
        kv_slices,
        heads,
        kv_heads,
        kv.shape[3],
        HALF=dim // 2,
        HALF_BLOCK=triton.next_power_of_2(dim // 2),
        HEADS_BLOCK=triton.next_power_of_2(heads),
        KV_HEADS_BLOCK=triton.next_power_of_2(kv_heads),
        num_warps=4 if heads * dim <= 4096 else 8,
    )
    return out


@triton.jit
def _rope_and_write(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    out,
    kv,
    cos,
    sin,
    places,
    q_norm,
    k_norm,
    eps,
    places_stride,
    q_token_stride,
    q_slice_stride,
    k_token_stride,
    k_slice_stride,
    v_token_stride,
    v_slice_stride,
    block_stride,
    kv_slices,
    heads,
    kv_heads,
    block_size,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    KV_HEADS_BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slice_ = tl.program_id(1)
    dims = tl.arange(0, HALF_BLOCK)[None]
    position = tl.load(places + token).to(tl.int64)
    c = tl.load(cos + position * HALF + dims, dims < HALF, other=0.0)
    s = tl.load(sin + position * HALF + dims, dims < HALF, other=0.0)

    head = tl.arange(0, HEADS_BLOCK)[:, None]
    mask = (head < heads) & (dims < HALF)
    source = q + token * q_token_stride + slice_ * q_slice_stride + head * (2 * HALF) + dims
    first = tl.load(source, mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask, other=0.0).to(tl.float32)
    if q_norm is not None:
        first, second = _norm_halves(first, second, q_norm, eps, dims, HALF, q.dtype.element_ty)
    target = out + ((token * tl.num_programs(1) + slice_) * heads + head) * (2 * HALF) + dims
    tl.store(target, first * c - second * s, mask)
    tl.store(target + HALF, second * c + first * s, mask)

    if slice_ < kv_slices:
        # Blocks lie far apart: a pool has more than 2^32 elements.
        block = tl.load(places + places_stride + token).to(tl.int64)
        slot = tl.load(places + 2 * places_stride + token)
        kv_head = tl.arange(0, KV_HEADS_BLOCK)[:, None]
        kv_mask = (kv_head < kv_heads) & (dims < HALF)
        size = block_size * (2 * HALF)
        kv_target = kv + block * block_stride + (slice_ * kv_heads + kv_head) * (2 * size) + slot * (2 * HALF) + dims
        kv_source = k + token * k_token_stride + slice_ * k_slice_stride + kv_head * (2 * HALF) + dims
        k_first = tl.load(kv_source, kv_mask, other=0.0).to(tl.float32)
        k_second = tl.load(kv_source + HALF, kv_mask, other=0.0).to(tl.float32)
        if k_norm is not None:
            k_first, k_second = _norm_halves(k_first, k_second, k_norm, eps, dims, HALF, k.dtype.element_ty)
        tl.store(kv_target, _stored(k_first * c - k_second * s, k, kv), kv_mask)
        tl.store(kv_target + HALF, _stored(k_second * c + k_first * s, k, kv), kv_mask)
        kv_source = v + token * v_token_stride + slice_ * v_slice_stride + kv_head * (2 * HALF) + dims
        tl.store(kv_target + size, _stored(tl.load(kv_source, kv_mask).to(tl.float32), v, kv), kv_mask)
        tl.store(kv_target + size + HALF, _stored(tl.load(kv_source + HALF, kv_mask).to(tl.float32), v, kv), kv_mask)


@triton.jit
def _stored(values, source, kv):  # type: ignore[no-untyped-def]
    """float32 as the pool has it: in the source's 16 bits, or in 8 that are rounded from those."""
    values = values.to(source.dtype.element_ty)
    if kv.dtype.element_ty == tl.float8e4nv:
        values = tl.minimum(tl.maximum(values.to(tl.float32), -448.0), 448.0)
    return values.to(kv.dtype.element_ty)


@triton.jit
def _norm_halves(first, second, weight, eps, dims, HALF: tl.constexpr, element: tl.constexpr):  # type: ignore[no-untyped-def]
    """Norm heads `[heads, HALF]` in two halves, which are rounded to their dtype before the scales, as everywhere."""
    factor = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * HALF) + eps)[:, None]
    w_first = tl.load(weight + dims, dims < HALF, other=0.0).to(tl.float32)
    w_second = tl.load(weight + HALF + dims, dims < HALF, other=0.0).to(tl.float32)
    first = (first * factor).to(element).to(tl.float32) * w_first
    second = (second * factor).to(element).to(tl.float32) * w_second
    return first.to(element).to(tl.float32), second.to(element).to(tl.float32)


def draw(
    scores: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor, first_id: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of each row `[rows, n]` of logits of the ids from `first_id` on: its id, int64, and score, float32.

    `temperatures` float32: 0 takes the likeliest (lowest id of equals), else the softmax of scores / temperature is
    drawn from, with noise that is a pure function of (`keys` int64, token id).
    """
    rows, count = scores.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=scores.device)
    best = torch.empty(rows, dtype=torch.float32, device=scores.device)
    _draw[(rows,)](
        scores, scores.stride(0), temperatures, keys, tokens, best, first_id, count, BLOCK=_SAMPLE_BLOCK, num_warps=8
    )
    return tokens, best


@triton.jit
def _draw(  # type: ignore[no-untyped-def]
    scores, row_stride, temperatures, keys, tokens, best_scores, first_id, count, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperatures + row)
    key = tl.load(keys + row)
    lanes = tl.arange(0, BLOCK)
    best = tl.full((BLOCK,), float("-inf"), tl.float32)  # of each lane, with the id it has it at
    best_id = lanes
    for start in range(0, count, BLOCK):
        columns = start + lanes
        score = tl.load(scores + row * row_stride + columns, columns < count, other=float("-inf")).to(tl.float32)
        if temperature > 0:
            # argmax(score - log(e)) with exponential e draws from the softmax (the Gumbel trick). The smallest e
            # decide, so they must be exact: uniform u is in (0, 1) with 2^-32 between, and log(1 - u) loses it.
            u = (
                tl.randint(key, first_id + columns).to(tl.uint32, bitcast=True).to(tl.float32) + 0.5
            ) * 2.3283064365386963e-10
            e = tl.where(u < 1e-3, u + 0.5 * u * u, -tl.log(tl.maximum(1.0 - u, 1e-10)))
            score = score / temperature - tl.log(e)
        better = score > best
        best = tl.where(better, score, best)
        best_id = tl.where(better, columns, best_id)
    highest = tl.max(best, 0)
    least = tl.min(tl.where(best == highest, best_id, count), 0)
    tl.store(tokens + row, first_id + tl.minimum(least, count - 1).to(tl.int64))
    tl.store(best_scores + row, highest)
