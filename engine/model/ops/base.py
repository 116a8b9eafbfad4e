"""The operators: what differs between devices in computing. Plain torch is the reference, FlashInfer the CUDA one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch

from engine.model.shapes import ModelShape
from engine.sampling import RowSampling


@dataclass(frozen=True)
class BatchInputs:
    """Host-side description of one forward step's chunks, in batch order. All tensors are on the CPU.

    `query_lens[i]` tokens of chunk i sit at positions `context_lens[i] - query_lens[i] ... context_lens[i] - 1`
    of its sequence; `tables[i, :ceil(context_lens[i] / block_size)]` are its device blocks (the rest is padding).
    """

    query_lens: torch.Tensor  # int32 [chunks]
    context_lens: torch.Tensor  # int32 [chunks], with this step's tokens
    tables: torch.Tensor  # int32 [chunks, max_blocks]

    @property
    def num_tokens(self) -> int:
        return int(self.query_lens.sum())


class Ops(ABC):
    """Operators over one device. Stateless between steps, except for workspaces they own.

    A KV view is a layer's part of the device pool: `[blocks, heads, 2, block_size, head_dim]`, strided over
    blocks. Hidden states and weights are in the model's dtype; norms, rope and softmax compute in float32.
    """

    @abstractmethod
    def plan(self, batch: BatchInputs, num_heads: int, num_kv_heads: int) -> Any:
        """Host work of a step's attention, once for all its layers. `num_heads`: this shard's.

        The result is passed to `rope`, `write_kv` and `attention` of that step only.
        """

    @abstractmethod
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x * rsqrt(mean(x^2) + eps) * weight`, over the last dimension."""

    @abstractmethod
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (norm of the sum, the sum); may reuse both inputs' memory."""

    @abstractmethod
    def rope(self, plan: Any, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate `[tokens, heads, head_dim]` (any strides) to the plan's positions; returns contiguous tensors."""

    @abstractmethod
    def write_kv(self, plan: Any, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor) -> None:
        """Write the step's `[tokens, kv_heads, head_dim]` into their blocks of a layer's KV view."""

    @abstractmethod
    def attention(self, plan: Any, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Causal attention of `[tokens, heads, head_dim]` over the KV view, this step's tokens included
        (they were written before). Returns `[tokens, heads * head_dim]`."""

    @abstractmethod
    def silu_and_mul(self, x: torch.Tensor) -> torch.Tensor:
        """`[rows, 2 * f]` -> `[rows, f]`: silu of the first half times the second."""

    @abstractmethod
    def sample(self, logits: torch.Tensor, rows: list[RowSampling], positions: list[int]) -> torch.Tensor:
        """Sample `[rows, vocab]` float32 logits to `[rows]` int64 tokens, each by its own parameters.

        Temperature 0 is greedy (lowest id wins a tie). Otherwise temperature, then top-k, top-p and min-p as in
        vLLM, and noise that is a pure function of (seed, position).
        """


def make_ops(device: torch.device, shape: ModelShape, block_size: int) -> Ops:
    """The operators for a device."""
    from engine.model.ops.torch import TorchOps

    return TorchOps(shape, block_size, device)
