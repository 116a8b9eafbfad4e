"""Attention of sequences that decode: one query token each over its blocks. Used by `FlashInferOps`.

Two of FlashInfer's families of kernels behind one face. FlashAttention 2 runs everywhere and over any cache; XQA's,
over a cache in 8 bits on Hopper, computes in 8 bits (it rounds queries and probabilities, too), and reads about
2,700 GB/s where FlashAttention 2, which first makes 16 bits of them, reads 1,200 to 2,100 (`docs/performance.md`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import flashinfer
import torch

from seesaw.engine.device.upload import upload
from seesaw.engine.ops.attention_plans import AttentionFormat
from seesaw.engine.ops.base import BatchInputs

_TENSOR_CORE_GROUP = 4  # so many query heads on a KV head, and decode runs faster on tensor cores
_XQA_BLOCK_SIZES = (16, 32, 64, 128)
_XQA_LARGEST_GROUP = 32
_SEMAPHORES = 1 << 21  # one for each sequence and KV head

Cache = tuple[torch.Tensor, torch.Tensor]  # a layer's keys and values, [blocks, KV heads, T, D] each, strided


class DecodeAttention(ABC):
    """Planned once a step, run in every layer. The plan's buffers are the next one's, too, in stream order."""

    @abstractmethod
    def plan(self, batch: BatchInputs) -> None:
        """`batch` has one token of each sequence."""

    @abstractmethod
    def run(self, q: torch.Tensor, cache: Cache, out: torch.Tensor) -> None:
        """`q` and `out`: `[rows, heads, head_dim]`, contiguous."""


class DecodeAttentions:
    """Makes them, over workspaces that all share: no two run at once."""

    def __init__(
        self, format: AttentionFormat, workspace: torch.Tensor, programs: int, xqa: bool, dependent_launch: bool | None
    ) -> None:
        """`workspace` uint8; `programs`: into how many programs' work FlashInfer splits attention, at most.

        `xqa`: take those kernels where they fit. `dependent_launch`: FlashInfer's `enable_pdl`.
        """
        self._format = format
        self._workspace = workspace
        self._programs = programs
        self._dependent_launch = dependent_launch
        self._semaphores: torch.Tensor | None = None
        if xqa and format.block_size in _XQA_BLOCK_SIZES and format.window_left < 0:
            # Each launch leaves them at zero.
            self._semaphores = torch.zeros(_SEMAPHORES, dtype=torch.uint32, device=format.device)

    def make(self, heads: int, kv_heads: int, tables: torch.Tensor | None = None) -> DecodeAttention:
        """`tables` is for a CUDA graph: where the block tables of all its sequences are kept, int32
        `[rows, most blocks of a sequence]`, on the device."""
        if self._semaphores is not None and heads // kv_heads <= _XQA_LARGEST_GROUP:
            return XqaDecode(self._format, kv_heads, self._workspace, self._semaphores, self._dependent_launch, tables)
        return WrapperDecode(
            self._format, heads, kv_heads, self._workspace, self._programs, self._dependent_launch, tables
        )


class WrapperDecode(DecodeAttention):
    """FlashAttention 2's, by FlashInfer's wrapper, which plans on the host."""

    def __init__(
        self,
        format: AttentionFormat,
        heads: int,
        kv_heads: int,
        workspace: torch.Tensor,
        programs: int,
        dependent_launch: bool | None,
        tables: torch.Tensor | None,
    ) -> None:
        self._format = format
        self._heads, self._kv_heads = heads, kv_heads
        self._dependent_launch = dependent_launch
        cores = heads // kv_heads >= _TENSOR_CORE_GROUP
        graph: dict[str, Any] = {}
        self._whole_rows: int | None = None  # a graph's, if it splits no sequence
        if tables is not None:
            rows = len(tables)
            graph = {
                "use_cuda_graph": True,
                "paged_kv_indptr_buffer": torch.zeros(rows + 1, dtype=torch.int32, device=format.device),
                "paged_kv_indices_buffer": tables.view(-1),
                "paged_kv_last_page_len_buffer": torch.zeros(rows, dtype=torch.int32, device=format.device),
            }
            if cores and rows >= programs // kv_heads:
                # Whole sequences are enough for all programs: to split them would only cost a merge.
                self._whole_rows = rows
        # Its plan is what `_launch_only_planned` knows, so FlashInfer may choose no other.
        self._wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
            workspace, "HND", use_tensor_cores=cores, backend="fa2", **graph
        )

    def plan(self, batch: BatchInputs) -> None:
        options = {} if self._whole_rows is None else {"disable_split_kv": True}
        self._format.plan(self._wrapper, batch, self._heads, self._kv_heads, **options)
        if self._whole_rows is not None:
            _launch_only_planned(self._wrapper, self._whole_rows, self._heads // self._kv_heads)

    def run(self, q: torch.Tensor, cache: Cache, out: torch.Tensor) -> None:
        self._wrapper.run(q, cache, out=out, enable_pdl=self._dependent_launch)


def _launch_only_planned(decode: Any, rows: int, group: int) -> None:
    """Have a graph's attention launch no more programs than its plan describes. The plan was made not to split.

    FlashInfer launches some for which it then has neither work nor a mask (its issue 4002). Of a plan's numbers, the
    first is how many tiles the grid has for a KV head, and the fourth how many query heads of a row fit into one.
    """
    _, *others = decode._plan_info
    decode._plan_info = [rows * -(-group // others[2]), *others]


class XqaDecode(DecodeAttention):
    """XQA's kernels, which plan on the device, from a rectangle of block tables.

    They read whole blocks and mask what lies behind a sequence's end: what is never written must not be NaN
    (`DevicePool` sees to it).
    """

    def __init__(
        self,
        format: AttentionFormat,
        kv_heads: int,
        workspace: torch.Tensor,
        semaphores: torch.Tensor,
        dependent_launch: bool | None,
        tables: torch.Tensor | None,
    ) -> None:
        self._format = format
        self._kv_heads = kv_heads
        self._workspace = workspace
        self._semaphores = semaphores
        self._dependent_launch = dependent_launch
        self._is_static = tables is not None
        self._tables = torch.empty(0, 0) if tables is None else tables
        self._lens = torch.zeros(len(self._tables), dtype=torch.int32, device=format.device)

    def plan(self, batch: BatchInputs) -> None:
        device = self._format.device
        tables, lens = upload(batch.tables, device), upload(batch.context_lens, device)
        if self._is_static:
            self._tables[:, : tables.shape[1]].copy_(tables)
            self._lens.copy_(lens)
        else:
            self._tables, self._lens = tables, lens

    def run(self, q: torch.Tensor, cache: Cache, out: torch.Tensor) -> None:
        flashinfer.xqa(
            q[:, None],
            *cache,
            self._tables,
            self._lens.view(torch.uint32)[:, None],
            out[:, None],
            self._workspace,
            self._semaphores,
            self._kv_heads,
            self._format.block_size,
            kv_layout="HND",
            enable_pdl=self._dependent_launch,
        )
