"""The operators: what differs between devices in computing. Plain torch is the reference, FlashInfer the CUDA one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.ops.capability import capability_of
from seesaw.engine.ops.fp8 import Activation, Fp8Format, Quantized, quantize
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.values.config import AttentionBackend
from seesaw.engine.values.errors import ConfigError


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

    def chunks_and_positions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each token of the step, int64 `[tokens]`: which chunk it is of, and its position there."""
        query_lens, context_lens = self.query_lens.long(), self.context_lens.long()
        chunks = torch.repeat_interleave(query_lens)
        first_rows = query_lens.cumsum(0) - query_lens
        return chunks, torch.arange(len(chunks)) + (context_lens - query_lens - first_rows)[chunks]


class HeadNorms(NamedTuple):
    """Norms of each head's query and key, before they are rotated: scales `[head_dim]` each."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float


class Ops(ABC):
    """Operators over one device. Stateless between steps, except for workspaces they own.

    A KV view is a layer's part of the device pool: `[blocks, heads, 2, block_size, head_dim]`, strided over
    blocks. Hidden states and weights are in the model's dtype; norms, rope and softmax compute in float32.
    """

    @abstractmethod
    def plan(self, batch: BatchInputs, num_heads: int, num_kv_heads: int) -> Any:
        """Host work of a step's attention, once for all its layers. `num_heads`: this shard's.

        The result is passed to `rope_and_write` and `attention` of that step only.
        """

    @abstractmethod
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """`x * rsqrt(mean(x^2) + eps) * weight`, over the last dimension."""

    @abstractmethod
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns (norm of the sum, the sum); may reuse both inputs' memory."""

    def norm_for(self, x: torch.Tensor, weight: torch.Tensor, eps: float, format: Fp8Format | None) -> Activation:
        """`rms_norm`, as a product wants it."""
        normed = self.rms_norm(x, weight, eps)
        return normed if format is None else self.quantize(normed, format)

    def add_norm_for(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, format: Fp8Format | None
    ) -> tuple[Activation, torch.Tensor]:
        """`add_rms_norm`, as a product wants it."""
        normed, total = self.add_rms_norm(x, residual, weight, eps)
        return normed if format is None else self.quantize(normed, format), total

    def quantize(self, x: torch.Tensor, format: Fp8Format) -> Quantized:
        """`[rows, columns]` in 8 bits."""
        return quantize(x, format)

    @abstractmethod
    def rope_and_write(
        self,
        plan: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Rotate q and k, normed if asked for, to the plan's positions; write k and v into blocks of a layer's KV view.

        All are `[tokens, slices, heads of a slice, head_dim]`, strided over tokens and slices; k and v may have
        fewer slices than q. Returns the rotated q, contiguous `[tokens, heads, head_dim]`.
        """

    @abstractmethod
    def attention(self, plan: Any, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        """Causal attention of `[tokens, heads, head_dim]` over the KV view, this step's tokens included
        (they were written before). Returns `[tokens, heads * head_dim]`."""

    @abstractmethod
    def silu_and_mul(self, x: torch.Tensor, format: Fp8Format | None = None) -> Activation:
        """`[rows, slices, 2 * f]` -> `[rows, slices * f]`: silu of each slice's first half times its second."""

    @abstractmethod
    def sample(self, logits: torch.Tensor, rows: list[RowSampling], positions: list[int]) -> torch.Tensor:
        """Sample `[rows, vocab]` logits to `[rows]` int64 tokens, each by its own parameters.

        Temperature 0 is greedy (lowest id wins a tie). Otherwise temperature, then top-k, top-p and min-p as in
        vLLM, and noise that is a pure function of (seed, position).
        """

    @abstractmethod
    def best(
        self, logits: torch.Tensor, rows: list[RowSampling], positions: list[int], first_id: int, vocab: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Of `[rows, n]` logits of the tokens from `first_id` on, each row's best score, float32, and its id, int64.

        No row is restricted. The best of all parts of a vocabulary of `vocab` tokens (the lowest id of equals) is what
        `sample` takes.
        """


class GraphOps(Ops):
    """Operators that CUDA graphs can be made of: they plan decode steps in buffers whose addresses stay."""

    @abstractmethod
    def graph_plan(self, num_heads: int, num_kv_heads: int, tables: torch.Tensor) -> Any:
        """A plan for chunks of one token each, to capture with. `replan` it before the capture.

        `tables` int32 `[chunks, most blocks of a chunk]`, on the device, is where it keeps their blocks; the plans of
        graphs that never run at once can share it.
        """

    @abstractmethod
    def replan(self, plan: Any, batch: BatchInputs) -> None:
        """Describe the next replay's step, of just the plan's chunks, in the plan's buffers."""


def make_ops(
    device: torch.device, shape: ModelShape, block_size: int, attention_backend: AttentionBackend = "auto"
) -> Ops:
    """The operators for a device. Raises ConfigError if the device, or FlashInfer, cannot run this model so."""
    if device.type == "cuda" and shape.dtype != "float32":
        from seesaw.engine.ops.flashinfer import FlashInferOps

        return FlashInferOps(shape, block_size, device, capability_of(device), attention_backend)
    if attention_backend != "auto":
        raise ConfigError(
            f"attention_backend {attention_backend} is for GPUs in half precision, and this is {shape.dtype} on "
            f"{device.type}: use --attention-backend auto"
        )
    from seesaw.engine.ops.torch import TorchOps

    return TorchOps(shape, block_size, device)
