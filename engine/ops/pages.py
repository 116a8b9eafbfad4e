"""A batch's block tables in the form that FlashInfer plans from. Used by `engine.ops.flashinfer`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.device.upload import upload
from engine.ops.base import BatchInputs


@dataclass(frozen=True)
class Pages:
    """Pinned host tensors, except `indices`, on the device."""

    indptr: torch.Tensor  # int32 [chunks + 1]
    indices: torch.Tensor  # int32 [blocks of all chunks]
    last_lens: torch.Tensor  # int32 [chunks]

    @classmethod
    def of(cls, batch: BatchInputs, block_size: int, device: torch.device) -> Pages:
        counts = (batch.context_lens + block_size - 1) // block_size
        used = torch.arange(batch.tables.shape[1]) < counts[:, None]
        return cls(
            indptr=indptr_of(counts).pin_memory(),
            indices=upload(batch.tables[used], device),
            last_lens=((batch.context_lens - 1) % block_size + 1).pin_memory(),
        )


def indptr_of(counts: torch.Tensor) -> torch.Tensor:
    """Where each of consecutive parts begins, and the last one ends: int32 `[parts + 1]`."""
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
