"""A decoder layer on one rank: its shards of attention and MLP. Used by `engine.model.decoder`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.model.stage import Operands
from seesaw.engine.model.sums import Half, Sums
from seesaw.engine.ops.base import HeadNorms, Ops
from seesaw.engine.ops.fp8 import Activation, Fp8Format


@dataclass(frozen=True)
class Share:
    """What one rank has of each layer in a layout: some of the model's weight slices."""

    shape: ModelShape
    num_slices: int  # of the model
    count: int  # of these, this rank's

    @property
    def slice_heads(self) -> int:
        return self.shape.num_heads // self.num_slices

    @property
    def slice_kv_heads(self) -> int:
        """At least one: with more slices than KV heads, neighbouring slices hold copies of one head."""
        return max(1, self.shape.num_kv_heads // self.num_slices)

    @property
    def kv_step(self) -> int:
        """Slices that share a KV head each compute it; of the rank's copies the first in so many slices is kept."""
        return min(max(1, self.num_slices // self.shape.num_kv_heads), self.count)

    @property
    def heads(self) -> int:
        return self.count * self.slice_heads

    @property
    def kv_heads(self) -> int:
        """As many as its extent in `KVGeometry.extents`."""
        return self.count // self.kv_step * self.slice_kv_heads


class DenseLayer:
    """Attention and a gated MLP, as `DenseFamily` names their weights. Stateless: weights and KV are the caller's."""

    def __init__(self, share: Share, weights: Operands, ops: Ops, sums: Sums) -> None:
        self._share = share
        self._ops = ops
        self._sums = sums
        self.input_norm = _vector(weights, "input_norm")
        self.post_norm = _vector(weights, "post_norm")
        self._qkv = _linear(weights, "qkv")
        self._o = _linear(weights, "o")
        self._gate_up = _linear(weights, "gate_up")
        self._down = _linear(weights, "down")
        self._head_norms = None
        if share.shape.qk_norm:
            query, key = (_vector(weights, name) for name in ("q_norm", "k_norm"))
            self._head_norms = HeadNorms(query, key, share.shape.rms_eps)

    @property
    def linears(self) -> tuple[Linear, ...]:
        return self._qkv, self._o, self._gate_up, self._down

    @property
    def attention_format(self) -> Fp8Format | None:
        """What `attention` takes."""
        return self._qkv.input_format

    @property
    def mlp_format(self) -> Fp8Format | None:
        return self._gate_up.input_format

    def attention(self, x: Activation, plan: Any, kv: torch.Tensor) -> torch.Tensor:
        """This shard's part of what attention adds to the residual stream, of its norm `[tokens, hidden]`."""
        share, fused = self._share, self._qkv.product(x)
        fused = fused.view(len(fused), share.count, -1, share.shape.head_dim)
        q, k, v = torch.split_with_sizes(fused, [share.slice_heads, share.slice_kv_heads, share.slice_kv_heads], dim=2)
        step = share.kv_step
        q = self._ops.rope_and_write(plan, q, k[:, ::step], v[:, ::step], kv, self._head_norms)
        attended = self._ops.attention(plan, q, kv)
        format = self._o.input_format
        x = attended if format is None else self._ops.quantize(attended, format)
        return self._sums.product(x, self._o, Half.ATTENTION)

    def mlp(self, x: Activation) -> torch.Tensor:
        """As `attention`, of the MLP."""
        gate_up = self._gate_up.product(x)
        gate_up = gate_up.view(len(gate_up), self._share.count, -1)
        return self._sums.product(self._ops.silu_and_mul(gate_up, self._down.input_format), self._down, Half.MLP)


def _linear(weights: Operands, name: str) -> Linear:
    value = weights[name]
    assert isinstance(value, Linear)
    return value


def _vector(weights: Operands, name: str) -> torch.Tensor:
    value = weights[name]
    assert isinstance(value, torch.Tensor)
    return value
