"""Tiny random models: checkpoints, transformers' answers for them, and a whole layout run inside one process.

The ranks of a stage are threads that really exchange their parts, so that every layout can be tested without
processes. Logits of these models vary (weights of standard deviation 0.15), so that a swapped head or layer shows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.model.decoder import Decoder
from seesaw.engine.model.shapes import ModelShape, check_plan
from seesaw.engine.model.stage import StageWeights
from seesaw.engine.model.sums import ReducedSums
from seesaw.engine.ops.base import BatchInputs, make_ops
from seesaw.engine.parallel.groups import SingleShard, TensorGroup
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.values.config import AttentionBackend
from seesaw.engine.weights.arena import rank_arena
from seesaw.engine.weights.loader import CheckpointSource
from seesaw.engine.weights.modes import ArenaWeights
from tests.patience import PATIENCE_S

CPU = torch.device("cpu")


def tiny_shape(
    *,
    layers: int = 4,
    heads: int = 8,
    kv_heads: int = 4,
    hidden: int | None = None,
    head_dim: int = 8,
    ffn: int = 96,
    vocab: int = 211,
    tied: bool = False,
    dtype: str = "float32",
    max_position: int = 512,
) -> ModelShape:
    """A shape that T1, T2 and T4 divide. For T3 ask for heads=12, kv_heads=6 or so. `hidden` follows the heads."""
    return ModelShape(
        num_layers=layers,
        hidden=hidden or 8 * heads,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocab=vocab,
        max_position=max_position,
        tied=tied,
        dtype=dtype,
    )


def write_tiny_checkpoint(
    folder: Path,
    *,
    family: str = "llama",
    layers: int = 4,
    heads: int = 8,
    kv_heads: int = 4,
    hidden: int | None = None,
    head_dim: int = 8,
    ffn: int = 96,
    vocab: int = 211,
    std: float = 0.15,
    dtype: str = "float32",
    tied: bool = False,
    seed: int = 0,
    max_position: int = 512,
    rope: dict[str, Any] | None = None,
    eos_token_id: int | None = None,
    max_shard_size: str = "1GB",
    **options: Any,
) -> Path:
    """Write a random model (config.json and safetensors; no tokenizer) and return its folder.

    `family` is transformers' `model_type`, `options` are of its config, `rope` its `rope_parameters`; `max_shard_size`
    makes several files of it. `hidden` is 8 * heads by default; transformers wants it to be a multiple of the heads.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        hidden_size=hidden or 8 * heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        vocab_size=vocab,
        max_position_embeddings=max_position,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        rope_parameters=rope or {"rope_type": "default", "rope_theta": 10000.0},
        **options,
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            mean, spread = (1.0, 0.1) if "norm" in name else (0.0, std)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + mean)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


@lru_cache(maxsize=8)
def _reference(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, read_shape(folder).dtype)).eval()


@torch.inference_mode()
def reference_logits(folder: Path, token_ids: list[int]) -> torch.Tensor:
    """transformers' logits `[len(token_ids), vocab]` float32, in the checkpoint's dtype."""
    logits: torch.Tensor = _reference(folder)(torch.tensor([token_ids])).logits[0].float()
    return logits


@torch.inference_mode()
def reference_greedy(folder: Path, prompt_ids: list[int], max_tokens: int) -> tuple[list[int], list[float]]:
    """transformers' greedy continuation (EOS does not end it), and at each token how far the runner-up's logit is."""
    model, tokens, gaps = _reference(folder), [], []
    result = model(torch.tensor([prompt_ids]), use_cache=True)
    while True:
        best = result.logits[0, -1].float().topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        if len(tokens) == max_tokens:
            return tokens, gaps
        result = model(torch.tensor([tokens[-1:]]), past_key_values=result.past_key_values, use_cache=True)


class ThreadGroup(TensorGroup):
    """Shards that are threads of one process: they lay their tensors on a table and meet at a barrier."""

    def __init__(self, shard: int, table: list[torch.Tensor | None], barrier: threading.Barrier) -> None:
        self.size, self.shard = len(table), shard
        self._table, self._barrier = table, barrier

    @classmethod
    def make(cls, size: int) -> list[TensorGroup]:
        if size == 1:
            return [SingleShard()]
        table: list[torch.Tensor | None] = [None] * size
        barrier = threading.Barrier(size, timeout=PATIENCE_S)
        return [cls(shard, table, barrier) for shard in range(size)]

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._table[self.shard] = x.clone()
        self._barrier.wait()
        parts = [part for part in self._table if part is not None]
        self._barrier.wait()
        return parts

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x.copy_(torch.stack(self._exchange(x)).sum(0))

    def gather_last(self, x: torch.Tensor) -> torch.Tensor | None:
        parts = self._exchange(x)
        return torch.cat(parts, dim=-1) if self.shard == 0 else None


class LocalModel:
    """Replica 0 of a layout with all its ranks in this process, each with weights and a poisoned KV pool."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        plan: Plan | None = None,
        block_size: int = 4,
        num_blocks: int = 64,
        stage: Callable[[int], StageWeights] | None = None,
        device: torch.device = CPU,
        dtype: str = "auto",
        changes: Mapping[str, Any] | None = None,
        attention_backend: AttentionBackend = "auto",
    ) -> None:
        """`changes` are of the shape's fields.

        `stage` gives a rank's weights (default: read from the checkpoint, cut for `plan` or for this layout).
        """
        self.shape = replace(read_shape(folder, dtype), **(changes or {}))
        self.layout, self._device = layout, device
        plan = plan or Plan(layout, layout)
        check_plan(plan, self.shape)
        if stage is None:
            source = CheckpointSource(folder)

            def stage(rank: int) -> StageWeights:
                return ArenaWeights([rank_arena(self.shape, plan, layout, rank)], source, device).stage(0)

        self.geometry = KVGeometry(self.shape, plan, block_size)
        self.block_size = block_size
        groups = [group for _ in range(layout.pp) for group in ThreadGroup.make(layout.tp)]
        self._ops = [make_ops(device, self.shape, block_size, attention_backend) for _ in groups]
        self.ranks = [
            Decoder(self.shape, stage(rank), ops, group, ReducedSums(ops, group))
            for rank, (ops, group) in enumerate(zip(self._ops, groups, strict=True))
        ]
        self.pools = [self._pool(rank, num_blocks) for rank in layout.replica_ranks(0)]
        self._threads = ThreadPoolExecutor(layout.tp)

    def _pool(self, rank: int, num_blocks: int) -> torch.Tensor:
        extent, shape = self.geometry.extents(self.layout)[rank], self.shape
        size = (num_blocks, len(extent.layers), len(extent.slices), 2, self.block_size, shape.head_dim)
        # As `DevicePool.poison`: kernels for 8 bits may read what they mask.
        nothing = torch.nan if shape.kv_cache_dtype is None else 448.0
        return torch.full(size, nothing, dtype=getattr(torch, shape.kv_dtype), device=self._device)

    def forward(self, chunks: list[tuple[int, list[int]]], tables: list[list[int]]) -> torch.Tensor:
        """Run (start, tokens) of each sequence over its blocks. Returns logits `[all tokens, vocab]`."""
        width = max(len(table) for table in tables)
        batch = BatchInputs(
            query_lens=torch.tensor([len(tokens) for _, tokens in chunks], dtype=torch.int32),
            context_lens=torch.tensor([start + len(tokens) for start, tokens in chunks], dtype=torch.int32),
            tables=torch.tensor([table + [-1] * (width - len(table)) for table in tables], dtype=torch.int32),
        )
        hidden = [torch.tensor([token for _, tokens in chunks for token in tokens]).to(self._device)] * self.layout.tp
        for stage in range(self.layout.pp):
            ranks = self.layout.stage_ranks(0, stage)
            hidden = list(self._threads.map(lambda rank, x: self._run(rank, x, batch), ranks, hidden))
        return hidden[0]

    @torch.inference_mode()
    def _run(self, rank: int, x: torch.Tensor, batch: BatchInputs) -> Any:
        model, pool = self.ranks[rank], self.pools[rank]
        plan = self._ops[rank].plan(batch, model.num_heads, model.num_kv_heads)
        stage = self.layout.coord(rank).stage
        hidden = model.embed(x) if stage == 0 else x.clone()
        hidden = model.layers(hidden, plan, list(pool.unbind(1)))
        if stage < self.layout.pp - 1:
            return hidden
        logits = model.logits(hidden)
        return None if logits is None else logits.float()

    def sample(self, hidden: torch.Tensor, rows: list[RowSampling], positions: list[int]) -> list[torch.Tensor | None]:
        """Sample after some rows of the last stage's output; returns what each of its shards does."""
        ranks = self.layout.stage_ranks(0, self.layout.pp - 1)
        return list(self._threads.map(lambda rank: self.ranks[rank].sample(hidden, rows, positions), ranks))

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Logits `[len(token_ids), vocab]` of one whole prompt."""
        num_blocks = self.geometry.blocks_for(len(token_ids))
        return self.forward([(0, token_ids)], [list(range(num_blocks))])


def layout_error(folder: Path, layouts: list[Layout], token_ids: list[int]) -> float:
    """How far the logits of these layouts (one replica each, cut for all of them) are from transformers' at most."""
    expected = reference_logits(folder, token_ids)
    return max(
        float((LocalModel(folder, Layout(1, each.pp, each.tp)).logits(token_ids) - expected).abs().max())
        for each in layouts
    )
