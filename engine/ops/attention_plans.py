"""What FlashInfer wants to know of a step's attention, once for all its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from seesaw.engine.device.upload import upload
from seesaw.engine.ops.base import BatchInputs


@dataclass(frozen=True)
class AttentionFormat:
    """What all attention of a model has in common."""

    head_dim: int
    dtype: torch.dtype  # of queries and results
    kv_dtype: torch.dtype
    block_size: int
    window_left: int  # tokens before a token that it attends to; -1: all of them
    device: torch.device

    def plan(self, wrapper: Any, batch: BatchInputs, heads: int, kv_heads: int, *queries: Any, **options: Any) -> None:
        """Plan one of FlashInfer's wrappers. `queries` is what a prefill's plan wants before its pages."""
        pages = Pages.of(batch, self.block_size, self.device)
        wrapper.plan(
            *queries,
            pages.indptr,
            pages.indices,
            pages.last_lens,
            heads,
            kv_heads,
            self.head_dim,
            self.block_size,
            q_data_type=self.dtype,
            kv_data_type=self.kv_dtype,
            window_left=self.window_left,
            **options,
        )


@dataclass(frozen=True)
class Pages:
    """A batch's block tables as FlashInfer wants them: pinned host tensors, except `indices`, on the device."""

    indptr: torch.Tensor  # int32 [chunks + 1]
    indices: torch.Tensor  # int32 [blocks of all chunks]
    last_lens: torch.Tensor  # int32 [chunks]

    @classmethod
    def of(cls, batch: BatchInputs, block_size: int, device: torch.device) -> Pages:
        counts = (batch.context_lens + block_size - 1) // block_size
        used = torch.arange(batch.tables.shape[1]) < counts[:, None]
        return cls(
            indptr=indptr(counts).pin_memory(),
            indices=upload(batch.tables[used], device),
            last_lens=((batch.context_lens - 1) % block_size + 1).pin_memory(),
        )


def indptr(counts: torch.Tensor) -> torch.Tensor:
    """Where each chunk's share begins, and the end: int32 `[chunks + 1]`."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
