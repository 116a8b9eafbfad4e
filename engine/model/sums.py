"""The sums of a tensor-parallel model: what its shards add to the residual stream. Used by the decoder's layers.

Every half of a layer ends in a product whose results the shards must add up, onto the residual stream, whose norm is
what the next half begins with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, auto

import torch

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.ops.base import Ops
from seesaw.engine.ops.fp8 import Activation, Fp8Format
from seesaw.engine.parallel.groups import TensorGroup
from seesaw.engine.parallel.process_groups import ShardGroup
from seesaw.engine.values.config import CustomAllReduce


class Half(Enum):
    """Of a decoder layer. Sums of the two take turns."""

    ATTENTION = auto()
    MLP = auto()


class Sums(ABC):
    """How one stage's shards add up. A part is one shard's `[rows, hidden]` of a sum; all shards call together.

    Between `add_norm` calls a shard may keep just some rows of the residual stream up to date: it is handed from one
    to the next, and only `total` makes it whole.
    """

    @abstractmethod
    def product(self, x: Activation, linear: Linear, half: Half) -> torch.Tensor:
        """`linear` of this shard's columns, as a part. There is one at a time: it must be summed before the next."""

    @abstractmethod
    def add_norm(
        self,
        part: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        format: Fp8Format | None = None,
    ) -> tuple[Activation, torch.Tensor]:
        """Add the shards' parts to the residual stream; returns (the norm of the sum, in a format, and the sum).

        May reuse the memory of both. The norm is there until the next product.
        """

    @abstractmethod
    def total(self, part: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The shards' parts and the residual stream added up, whole on every shard."""


class ReducedSums(Sums):
    """All-reduces by the group's library, then every shard norms everything. With one shard, nothing to reduce."""

    def __init__(self, ops: Ops, group: TensorGroup) -> None:
        self._ops = ops
        self._group = group

    def product(self, x: Activation, linear: Linear, half: Half) -> torch.Tensor:
        return linear.product(x)

    def add_norm(
        self,
        part: torch.Tensor,
        residual: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        format: Fp8Format | None = None,
    ) -> tuple[Activation, torch.Tensor]:
        return self._ops.add_norm_for(self._group.all_reduce(part), residual, weight, eps, format)

    def total(self, part: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        summed = self._group.all_reduce(part)
        return summed if residual is None else residual + summed


def make_sums(
    ops: Ops,
    group: TensorGroup,
    shape: ModelShape,
    max_rows: int,
    device: torch.device,
    custom_all_reduce: CustomAllReduce = "auto",
) -> Sums:
    """The fastest sums that the shards' links, and the setting, allow, for steps of up to `max_rows` tokens.

    Collective over the group. Raises ConfigError if GPUs should be able to share memory, and cannot.
    """
    if device.type == "cuda":
        from seesaw.engine.parallel.peers import can_share

        if isinstance(group, ShardGroup) and can_share(group, device, custom_all_reduce):
            from seesaw.engine.model.peer_sums import PeerSums

            rounds = ops.quantize if shape.quantization else None
            return PeerSums(group, max_rows, shape.hidden, getattr(torch, shape.dtype), device, rounds)
    return ReducedSums(ops, group)
