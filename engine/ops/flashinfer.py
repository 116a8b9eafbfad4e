"""The operators on CUDA: FlashInfer's kernels over the block-first pool, and a few of our own (`kernels`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from seesaw.engine.device.upload import upload
from seesaw.engine.model.rope import inverse_frequencies
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.ops.attention_plans import AttentionFormat, indptr
from seesaw.engine.ops.base import BatchInputs, GraphOps, HeadNorms
from seesaw.engine.ops.capability import HEAD_DIMS, Capability, check_gpu, has_dependent_launch, has_xqa
from seesaw.engine.ops.fp8 import Activation, Fp8Format, Quantized
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.sampling.sampler import noise_keys
from seesaw.engine.values.config import AttentionBackend
from seesaw.engine.values.errors import ConfigError

try:
    import flashinfer
    import flashinfer.sampling

    from seesaw.engine.ops import fp8_kernels, kernels
    from seesaw.engine.ops.decode_attention import DecodeAttention, DecodeAttentions
except ImportError as error:
    raise ConfigError(
        f"the CUDA operators need FlashInfer ({error}): pip install -e '.[cuda]', or use --device cpu"
    ) from None

_MIN_WORKSPACE_BYTES = 256 << 20
_LARGEST_TILE = 128  # rows of queries in a tile of FlashInfer's
_FA3_TOKENS = 512  # with so many query tokens a chunk on average, FlashAttention 3 is the faster one, where it exists


@dataclass(frozen=True)
class FlashInferPlan:
    """One step: where its tokens go, and how its chunks attend. The first `decodes` chunks have one token each."""

    places: torch.Tensor  # int32 [3, tokens]: position, block, slot in the block
    decodes: int
    decode: DecodeAttention | None  # planned, for the first `decodes` rows
    prefill: Any | None  # a planned wrapper, for the rows behind them


class FlashInferOps(GraphOps):
    """Operators over one CUDA device, for bfloat16 and float16. Owns workspaces, so it serves one thread.

    A plan's buffers are the next one's, too, in stream order: what was planned may run until the next `plan`.
    """

    def __init__(
        self,
        shape: ModelShape,
        block_size: int,
        device: torch.device,
        capability: Capability,
        attention_backend: AttentionBackend = "auto",
    ) -> None:
        """`capability` is the device's, or an older one, to run as such a GPU would. Raises ConfigError."""
        if shape.head_dim not in HEAD_DIMS:
            raise ConfigError(
                f"the CUDA operators support head_dim {', '.join(map(str, HEAD_DIMS))}, and this model has "
                f"{shape.head_dim}: use another model, or --device cpu"
            )
        backends = check_gpu(capability, shape, attention_backend)
        # What FlashInfer's `enable_pdl` takes; None leaves it to FlashInfer, which goes by the device.
        self._dependent_launch = None if has_dependent_launch(capability) else False
        self._block_size = block_size
        self._device = device
        # FlashInfer counts the tokens before a token, the window itself, too. Without one, -1.
        window_left = -1 if shape.sliding_window is None else shape.sliding_window - 1
        dtype, kv_dtype = (getattr(torch, name) for name in (shape.dtype, shape.kv_dtype))
        self._format = AttentionFormat(shape.head_dim, dtype, kv_dtype, block_size, window_left, device)
        angles = torch.arange(shape.max_position).float()[:, None] * inverse_frequencies(shape)
        self._cos, self._sin = ((t * shape.rope.attention_factor).to(device) for t in (angles.cos(), angles.sin()))
        # FlashInfer splits sequences into at most so many programs' work. What they found waits to be merged, in
        # float32: a tile of rows for each query head, and a number for each of those rows.
        self._programs = 2 * torch.cuda.get_device_properties(device).multi_processor_count
        group = shape.num_heads // shape.num_kv_heads
        partial_bytes = self._programs * group * _LARGEST_TILE * (shape.head_dim + 1) * 4
        workspace_bytes = max(_MIN_WORKSPACE_BYTES, partial_bytes)
        self._workspace = torch.zeros(workspace_bytes, dtype=torch.uint8, device=device)
        xqa = has_xqa(capability, attention_backend) and shape.kv_cache_dtype is not None
        self._decodes = DecodeAttentions(self._format, self._workspace, self._programs, xqa, self._dependent_launch)
        self._decode_of: dict[tuple[int, int], DecodeAttention] = {}  # heads and KV heads of a layout
        self._prefills = {
            backend: flashinfer.BatchPrefillWithPagedKVCacheWrapper(self._workspace, "HND", backend=backend)
            for backend in backends
        }
        # FlashInfer copies each plan out of one pinned buffer; it must not be overwritten before.
        self._planned = torch.cuda.Event(blocking=True)

    def plan(self, batch: BatchInputs, num_heads: int, num_kv_heads: int) -> FlashInferPlan:
        """Waits until the device has taken over the plan before."""
        self._planned.synchronize()
        single = (batch.query_lens == 1).int()
        decodes = int(single.cumprod(0).sum())
        decode = prefill = None
        if decodes:
            if (num_heads, num_kv_heads) not in self._decode_of:
                self._decode_of[num_heads, num_kv_heads] = self._decodes.make(num_heads, num_kv_heads)
            decode = self._decode_of[num_heads, num_kv_heads]
            decode.plan(_part(batch, slice(0, decodes)))
        if decodes < len(single):
            prefill = self._plan_prefill(_part(batch, slice(decodes, None)), num_heads, num_kv_heads)
        plan = FlashInferPlan(upload(self._places(batch), self._device), decodes, decode, prefill)
        self._planned.record()
        return plan

    def graph_plan(self, num_heads: int, num_kv_heads: int, tables: torch.Tensor) -> FlashInferPlan:
        places = torch.zeros(3, len(tables), dtype=torch.int32, device=self._device)
        return FlashInferPlan(places, len(tables), self._decodes.make(num_heads, num_kv_heads, tables), None)

    def replan(self, plan: FlashInferPlan, batch: BatchInputs) -> None:
        self._planned.synchronize()
        assert plan.decode is not None
        plan.decode.plan(batch)
        plan.places.copy_(self._places(batch).pin_memory(), non_blocking=True)
        self._planned.record()

    def _plan_prefill(self, batch: BatchInputs, num_heads: int, num_kv_heads: int) -> Any:
        better = "fa3" if batch.num_tokens >= _FA3_TOKENS * len(batch.query_lens) else "fa2"
        wrapper = self._prefills[better if better in self._prefills else next(iter(self._prefills))]
        queries = indptr(batch.query_lens).pin_memory()
        self._format.plan(wrapper, batch, num_heads, num_kv_heads, queries, causal=True)
        return wrapper

    def _places(self, batch: BatchInputs) -> torch.Tensor:
        chunks, positions = batch.chunks_and_positions()
        blocks = batch.tables[chunks, positions // self._block_size]
        return torch.stack((positions.int(), blocks, (positions % self._block_size).int()))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        out: torch.Tensor = flashinfer.rmsnorm(x, weight, eps, enable_pdl=self._dependent_launch)
        return out

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # The sum into residual, its norm into x.
        flashinfer.fused_add_rmsnorm(x, residual, weight, eps, enable_pdl=self._dependent_launch)
        return x, residual

    def rope_and_write(
        self,
        plan: FlashInferPlan,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        return kernels.rope_and_write(q, k, v, kv, self._cos, self._sin, plan.places, norms)

    def attention(self, plan: FlashInferPlan, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(q)
        cache = (kv[:, :, 0], kv[:, :, 1])
        if plan.decode is not None:
            plan.decode.run(q[: plan.decodes], cache, out[: plan.decodes])
        if plan.prefill is not None:
            rows = slice(plan.decodes, None)
            plan.prefill.run(q[rows], cache, out=out[rows], enable_pdl=self._dependent_launch)
        return out.flatten(1)

    def silu_and_mul(self, x: torch.Tensor, format: Fp8Format | None = None) -> Activation:
        if format is not None:
            return fp8_kernels.silu_and_mul(x, format)
        out: torch.Tensor = flashinfer.silu_and_mul(x, enable_pdl=self._dependent_launch)
        return out.flatten(1)

    def norm_for(self, x: torch.Tensor, weight: torch.Tensor, eps: float, format: Fp8Format | None) -> Activation:
        if format is None:
            return self.rms_norm(x, weight, eps)
        return fp8_kernels.add_norm(x, None, weight, eps, format)

    def add_norm_for(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, format: Fp8Format | None
    ) -> tuple[Activation, torch.Tensor]:
        if format is None:
            return self.add_rms_norm(x, residual, weight, eps)
        return fp8_kernels.add_norm(x, residual, weight, eps, format), residual

    def quantize(self, x: torch.Tensor, format: Fp8Format) -> Quantized:
        return fp8_kernels.quantize(x, format)

    def sample(self, logits: torch.Tensor, rows: list[RowSampling], positions: list[int]) -> torch.Tensor:
        keys = noise_keys([row.seed for row in rows], positions)
        tokens, _ = self._draw(logits, _temperatures(rows), keys)
        restricted = [i for i, row in enumerate(rows) if row.is_restricted]
        if restricted:
            index = upload(torch.tensor(restricted), self._device)
            scores = self._restricted(logits[index], [rows[i] for i in restricted])
            tokens[index], _ = self._draw(scores, [1.0] * len(restricted), keys[restricted])
        return tokens

    def best(
        self, logits: torch.Tensor, rows: list[RowSampling], positions: list[int], first_id: int, vocab: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = noise_keys([row.seed for row in rows], positions)
        tokens, scores = self._draw(logits, _temperatures(rows), keys, first_id)
        return scores, tokens

    def _draw(
        self, scores: torch.Tensor, temperatures: list[float], keys: torch.Tensor, first_id: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return kernels.draw(scores, self._column(temperatures), upload(keys, self._device), first_id)

    def _restricted(self, logits: torch.Tensor, rows: Sequence[RowSampling]) -> torch.Tensor:
        """Log-probabilities at the rows' temperatures, -inf where top-k, then top-p, then min-p forbids the token."""
        vocab = logits.shape[1]
        probs = (logits.float() / self._column([row.temperature for row in rows])[:, None]).softmax(-1)
        if any(0 < row.top_k < vocab for row in rows):
            kept = [row.top_k if 0 < row.top_k < vocab else vocab for row in rows]
            top_k = upload(torch.tensor(kept, dtype=torch.int32), self._device)
            probs = flashinfer.sampling.top_k_renorm_probs(probs, top_k)
        if any(row.top_p < 1.0 for row in rows):
            top_p = self._column([row.top_p for row in rows])
            nucleus = flashinfer.sampling.top_p_renorm_probs(probs, top_p)
            probs = torch.where(top_p[:, None] < 1.0, nucleus, probs)
        if any(row.min_p > 0.0 for row in rows):
            least = self._column([row.min_p for row in rows])[:, None] * probs.amax(-1, keepdim=True)
            probs = probs.masked_fill(probs < least, 0.0)
        return probs.log()

    def _column(self, values: list[float]) -> torch.Tensor:
        return upload(torch.tensor(values, dtype=torch.float32), self._device)


def _temperatures(rows: Sequence[RowSampling]) -> list[float]:
    return [0.0 if row.is_greedy else row.temperature for row in rows]


def _part(batch: BatchInputs, chunks: slice) -> BatchInputs:
    return replace(
        batch,
        query_lens=batch.query_lens[chunks],
        context_lens=batch.context_lens[chunks],
        tables=batch.tables[chunks],
    )
