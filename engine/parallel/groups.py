"""Communication between the ranks of one layout, as values. One process holds those of several layouts."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch


class TensorGroup(ABC):
    """The tensor-parallel shards of one stage. With one shard, every operation is the identity."""

    size: int
    shard: int

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over the shards, in place; returns `x`."""

    @abstractmethod
    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        """Concatenate the shards' `[rows, columns]` along columns, on shard 0; None on the others."""


class SingleShard(TensorGroup):
    """A stage of one shard."""

    size = 1
    shard = 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        return x
