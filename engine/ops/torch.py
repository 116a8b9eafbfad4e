"""The operators in plain torch: the reference for every other implementation, and what runs on CPUs.

Attention copies each sequence's blocks out of the pool and calls SDPA: decoding sequences together, in groups
of like length, and each prefill chunk by itself. All index work is done in `plan`, once per step. In a sliding
window, blocks before it are left out: what is called the context there begins with the first block that is seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from seesaw.engine.model.rope import inverse_frequencies, rotate
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.ops.base import BatchInputs, HeadNorms, Ops
from seesaw.engine.ops.fp8 import E4M3, LARGEST, Activation, Fp8Format
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.sampling.sampler import best, sample

# Most tokens of KV that one decode group copies out of the pool: bounds the workspace, and stays near the caches.
_GROUP_TOKENS = 1 << 13


@dataclass(frozen=True)
class _DecodeGroup:
    """Sequences with one query token each, padded to the same power of two of blocks, at most twice their own.

    The padding repeats a sequence's first block, which is full wherever there is padding: of the slots that are
    read, only those behind the context in the last block were never written.
    """

    rows: torch.Tensor  # [sequences] their tokens in the batch
    blocks: torch.Tensor  # [sequences, 1, blocks]
    last: torch.Tensor  # [sequences] which of them is the last
    unwritten: torch.Tensor  # [sequences, 1, block_size, 1] the slots of the last block behind the context
    mask: torch.Tensor  # [sequences, 1, 1, tokens] added to scores: 0 or -inf


@dataclass(frozen=True)
class _PrefillChunk:
    """Several query tokens of one sequence."""

    rows: slice  # its tokens in the batch
    blocks: torch.Tensor  # [1, blocks]
    context_len: int
    mask: torch.Tensor | None  # [query, context] added to scores; None: plain causal


@dataclass(frozen=True)
class TorchPlan:
    """One step's indices. Blocks and slots say where each token's K and V are written."""

    cos: torch.Tensor  # [tokens, 1, head_dim / 2]
    sin: torch.Tensor
    blocks: torch.Tensor  # [tokens]
    slots: torch.Tensor  # [tokens]
    heads: torch.Tensor  # [kv_heads, 1] their numbers
    group_size: int  # query heads for each KV head
    decodes: list[_DecodeGroup]
    prefills: list[_PrefillChunk]


class TorchOps(Ops):
    """Operators over a CPU (or, slowly, over any device of torch). Owns a workspace, so it serves one thread."""

    def __init__(self, shape: ModelShape, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._rope_factor = shape.rope.attention_factor
        self._device = device
        self._frequencies = inverse_frequencies(shape)
        self._dtype = getattr(torch, shape.dtype)
        self._scale = shape.head_dim**-0.5
        self._window = shape.sliding_window
        # Memory for copies of K and V, kept: fresh pages for every layer of every step cost more than the copying.
        self._workspace = torch.empty(0, dtype=self._dtype, device=device)

    def plan(self, batch: BatchInputs, num_heads: int, num_kv_heads: int) -> TorchPlan:
        query_lens, context_lens, tables = batch.query_lens.long(), batch.context_lens.long(), batch.tables.long()
        first_rows = query_lens.cumsum(0) - query_lens
        chunk, positions = batch.chunks_and_positions()
        angles = positions[:, None].float() * self._frequencies
        first_blocks = self._first_blocks(query_lens, context_lens)
        seen_lens = context_lens - first_blocks * self._block_size
        decodes, prefills = [], []
        by_blocks: dict[int, list[int]] = defaultdict(list)
        for i, (query_len, seen_len) in enumerate(zip(query_lens.tolist(), seen_lens.tolist(), strict=True)):
            num_blocks = math.ceil(seen_len / self._block_size)
            if query_len == 1:
                by_blocks[1 << (num_blocks - 1).bit_length()].append(i)
            else:
                row, first_block = int(first_rows[i]), int(first_blocks[i])
                blocks = tables[i, None, first_block : first_block + num_blocks]
                prefills.append(self._prefill(slice(row, row + query_len), blocks, seen_len))
        for num_blocks, members in by_blocks.items():
            at_once = max(1, _GROUP_TOKENS // (num_blocks * self._block_size))
            for first in range(0, len(members), at_once):
                part = torch.tensor(members[first : first + at_once])
                decodes.append(
                    self._decode(num_blocks, first_rows[part], seen_lens[part], tables[part], first_blocks[part])
                )
        return TorchPlan(
            cos=(angles.cos() * self._rope_factor)[:, None].to(self._device),
            sin=(angles.sin() * self._rope_factor)[:, None].to(self._device),
            blocks=tables[chunk, positions // self._block_size].to(self._device),
            slots=(positions % self._block_size).to(self._device),
            heads=torch.arange(num_kv_heads, device=self._device)[:, None],
            group_size=num_heads // num_kv_heads,
            decodes=decodes,
            prefills=prefills,
        )

    def _first_blocks(self, query_lens: torch.Tensor, context_lens: torch.Tensor) -> torch.Tensor:
        """The first block of each chunk that one of its tokens attends to."""
        if self._window is None:
            return torch.zeros_like(context_lens)
        return (context_lens - query_lens + 1 - self._window).clamp(min=0) // self._block_size

    def _prefill(self, rows: slice, blocks: torch.Tensor, context_len: int) -> _PrefillChunk:
        query_len = rows.stop - rows.start
        mask = None
        if query_len < context_len or (self._window is not None and self._window < context_len):
            positions = torch.arange(context_len)
            mask = self._mask(self._attended(positions, positions[-query_len:, None]))
        return _PrefillChunk(rows, blocks.to(self._device), context_len, mask)

    def _decode(
        self,
        num_blocks: int,
        rows: torch.Tensor,
        context_lens: torch.Tensor,
        tables: torch.Tensor,
        first_blocks: torch.Tensor,
    ) -> _DecodeGroup:
        size = self._block_size
        last = (context_lens - 1) // size
        columns = torch.arange(num_blocks)
        columns = columns.where(columns <= last[:, None], 0)
        filled = context_lens - last * size
        return _DecodeGroup(
            rows=rows.to(self._device),
            blocks=tables.gather(1, first_blocks[:, None] + columns)[:, None].to(self._device),
            last=last.to(self._device),
            unwritten=(torch.arange(size) >= filled[:, None])[:, None, :, None].to(self._device),
            mask=self._mask(self._attended(torch.arange(num_blocks * size), context_lens[:, None] - 1))[:, None, None],
        )

    def _attended(self, positions: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        """Whether a token at position `query` attends to those at `positions`."""
        causal = positions <= query
        return causal if self._window is None else causal & (positions > query - self._window)

    def _mask(self, attended: torch.Tensor) -> torch.Tensor:
        # SDPA would turn booleans into this form in every layer.
        return torch.zeros(attended.shape, dtype=self._dtype).masked_fill_(~attended, -torch.inf).to(self._device)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.add_(residual)
        return self.rms_norm(total, weight, eps), total

    def rope_and_write(
        self,
        plan: TorchPlan,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        # Slices hold consecutive heads, so slice-major is the natural order of heads.
        q, k, v = (x.flatten(1, 2) for x in (q, k, v))
        if norms is not None:
            q, k = self.rms_norm(q, norms.query, norms.eps), self.rms_norm(k, norms.key, norms.eps)
        self.write_kv(plan, rotate(k, plan.cos, plan.sin), v, kv)
        return rotate(q, plan.cos, plan.sin)

    def write_kv(self, plan: TorchPlan, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor) -> None:
        """Write the step's `[tokens, kv_heads, head_dim]`, rotated already, into their blocks of a KV view."""
        if kv.dtype != self._dtype:
            kv = kv.view(torch.uint8)
            k, v = (x.clamp(-LARGEST, LARGEST).to(E4M3).view(torch.uint8) for x in (k, v))
        kv[plan.blocks, :, 0, plan.slots] = k
        kv[plan.blocks, :, 1, plan.slots] = v

    def attention(self, plan: TorchPlan, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        for group in plan.decodes:
            out[group.rows] = self._attend_decodes(plan, group, q[group.rows], kv)
        for chunk in plan.prefills:
            out[chunk.rows] = self._attend_prefill(plan, chunk, q[chunk.rows], kv)
        return out.flatten(1)

    def _attend_decodes(self, plan: TorchPlan, group: _DecodeGroup, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        sequences = torch.arange(len(q), device=q.device)
        k, v = self._gather(kv, group.blocks, plan.heads)  # [sequences, kv_heads, blocks, block_size, head_dim]
        for copy in (k, v):
            # A masked score still meets its V as 0 * V, and garbage may be NaN.
            tail = copy[sequences, :, group.last]
            copy[sequences, :, group.last] = tail.masked_fill_(group.unwritten, 0)
        queries = q.view(len(q), kv.shape[1], plan.group_size, -1)  # a group's heads are queries over one KV head
        out = F.scaled_dot_product_attention(
            queries, k.flatten(2, 3), v.flatten(2, 3), attn_mask=group.mask, scale=self._scale
        )
        return out.flatten(1, 2)

    def _attend_prefill(self, plan: TorchPlan, chunk: _PrefillChunk, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        k, v = (
            # [kv_heads, context, head_dim], then repeated over a group's heads without a copy
            copy.flatten(1, 2)[:, None, : chunk.context_len].expand(-1, plan.group_size, -1, -1)
            for copy in self._gather(kv, chunk.blocks, plan.heads)
        )
        queries = q.view(len(q), kv.shape[1], plan.group_size, -1).permute(1, 2, 0, 3)
        out = F.scaled_dot_product_attention(
            queries, k, v, attn_mask=chunk.mask, is_causal=chunk.mask is None, scale=self._scale
        )
        return out.flatten(0, 1).transpose(0, 1)

    def silu_and_mul(self, x: torch.Tensor, format: Fp8Format | None = None) -> Activation:
        gate, up = x.chunk(2, dim=-1)
        activated = (F.silu(gate) * up).flatten(1)
        return activated if format is None else self.quantize(activated, format)

    def sample(self, logits: torch.Tensor, rows: list[RowSampling], positions: list[int]) -> torch.Tensor:
        return sample(logits.float(), rows, positions)

    def best(
        self, logits: torch.Tensor, rows: list[RowSampling], positions: list[int], first_id: int, vocab: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return best(logits.float(), rows, positions, first_id, vocab)

    def _gather(self, kv: torch.Tensor, blocks: torch.Tensor, heads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy K and V of some blocks out of a KV view: `[..., kv_heads, blocks, block_size, head_dim]` each.

        `blocks` is `[..., 1, blocks]`. The result is valid until the next call. The view is read as rows of one
        head's K or V in one block: `index_select` copies such rows at the speed of memory, indexing the strided
        view is ten times slower.
        """
        size, dim = kv.shape[3:]
        row = size * dim
        in_8_bits = kv.dtype != self._dtype
        if in_8_bits:
            kv = kv.view(torch.uint8)
        if kv.stride()[1:] != (2 * row, row, dim, 1) or kv.stride(0) % row:
            raise ValueError(f"a KV view must hold contiguous heads at multiples of {row} elements, not {kv.stride()}")
        stride = kv.stride(0) // row
        rows = kv.as_strided(((len(kv) - 1) * stride + 2 * kv.shape[1], row), (row, 1))
        first = blocks * stride + heads * 2
        count = first.numel()
        if self._workspace.numel() < 2 * count * row or self._workspace.dtype != kv.dtype:
            self._workspace = torch.empty(2 * count * row, dtype=kv.dtype, device=kv.device)
        k, v = (
            torch.index_select(rows, 0, (first + which).flatten(), out=copy).view(*first.shape, size, dim)
            for which, copy in enumerate(self._workspace[: 2 * count * row].view(2, count, row))
        )
        if in_8_bits:
            return k.view(E4M3).to(self._dtype), v.view(E4M3).to(self._dtype)
        return k, v
