"""Times one stage of a layout before the engine serves, with steps on nonsense. Used by `engine.worker.rank_timing`.

The shards of a stage take part together, so which steps are run, and how often, follows from sizes alone and from
seconds on which the shards agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from seesaw.engine.cost.times import Curve, StageTimes, pairs_of
from seesaw.engine.kv.geometry import KVGeometry
from seesaw.engine.model.counts import layer_params
from seesaw.engine.model.shapes import NO_WINDOW
from seesaw.engine.ops.base import BatchInputs
from seesaw.engine.values.config import EngineConfig

PREFILLS = (16, 64, 512, 2048, 8192)  # tokens of a step
DECODES = (1, 8, 64, 256, 1024, 4096)  # sequences
PROMPT_TOKENS = 64  # of a short prompt
_SAMPLED_TOKENS = 256  # as many prefilled tokens come with one that is sampled
_CPU_CONTEXT_BYTES = 32 << 20  # of K and V that a step reads: more than caches hold; memory of a pool is not free
# How the budget is divided. However little it is, a curve has its first points, and its smallest step may take all of
# it to show what attention costs: without that, attention counts as free.
_PREFILL, _DECODE, _PAIRS, _CONTEXT = 0.5, 0.2, 0.15, 0.15
_LEAST_POINTS = 2  # of a curve: one would say nothing of what a step costs by itself

Run = Callable[[BatchInputs, int, int], list[float]]
"""Runs a step, of which so many rows are sampled, so many times. Returns the seconds of each, the slowest shard's."""


@dataclass(frozen=True)
class Limits:
    """How large the timed steps may be; the same on all shards of a stage."""

    prefill_tokens: int
    decodes: int
    max_model_len: int
    block_size: int
    num_blocks: int  # of the device pool
    context_tokens: int  # that a decode step may read
    even_pairs: float  # a prompt's token attends to so many others with as much arithmetic as its products take
    attention_span: int = NO_WINDOW  # the model's

    @classmethod
    def of(cls, config: EngineConfig, geometry: KVGeometry, max_model_len: int, num_blocks: int, device: str) -> Limits:
        shape, blocks = geometry.shape, num_blocks
        if device == "cpu":
            blocks = max(1, min(blocks, _CPU_CONTEXT_BYTES // geometry.max_device_block_bytes))
        return cls(
            prefill_tokens=config.max_num_batched_tokens,
            decodes=config.max_num_seqs,
            max_model_len=max_model_len,
            block_size=config.block_size,
            num_blocks=num_blocks,
            context_tokens=blocks * config.block_size,
            even_pairs=layer_params(shape) / (2 * shape.num_heads * shape.head_dim),
            attention_span=shape.attention_span,
        )


def spread(counts: Sequence[int], most: int) -> list[int]:
    """Some of these counts, and `most` itself, ascending. Neighbours differ enough to see how steep a curve is."""
    chosen = [count for count in counts if 2 * count <= most] or [1]
    return sorted({*chosen, most})


class StageTimer:
    """Times one stage in at most about `budget_s` seconds, or four small steps. What would take longer is left out."""

    def __init__(self, run: Run, limits: Limits, budget_s: float, repeats: int) -> None:
        """A step is run once, and up to `repeats` times more; its best time counts."""
        self._run = run
        self._limits = limits
        self._budget_s = budget_s
        self._repeats = repeats
        self._left_s = 0.0  # of the part that is being timed

    def measure(self) -> StageTimes:
        limits = self._limits
        self._left_s = _PREFILL * self._budget_s
        prefill = self._curve(spread(PREFILLS, limits.prefill_tokens), self._prompts_s)
        self._left_s = _DECODE * self._budget_s
        decode = self._curve(spread(DECODES, limits.decodes), self._decode_s)
        self._left_s = _PAIRS * self._budget_s
        pair_s = self._pair_s(prefill)
        self._left_s = _CONTEXT * self._budget_s
        return StageTimes(_sustained(_rising(prefill)), _rising(decode), pair_s, self._context_s(decode))

    def _curve(self, counts: Sequence[int], seconds: Callable[[int], float]) -> dict[int, float]:
        points: dict[int, float] = {}
        for count in counts:
            if len(points) >= _LEAST_POINTS and _rising(points).at(count) > self._left_s:
                break
            points[count] = seconds(count)
        return points

    def _prompts_s(self, tokens: int) -> float:
        lens = _short_prompts(tokens, self._limits.max_model_len)
        return self._seconds(self._batch(lens, lens), _sampled(tokens))

    def _decode_s(self, rows: int, context: int = 0) -> float:
        contexts = [context or self._short_context] * rows
        return self._seconds(self._batch([1] * rows, contexts), rows)

    @property
    def _short_context(self) -> int:
        """A block, or the longest sequence."""
        return min(self._limits.block_size, self._limits.max_model_len)

    def _pair_s(self, prefill: dict[int, float]) -> float:
        """What a chunk that attends to much takes more than short prompts of as many tokens."""
        limits, smallest = self._limits, min(prefill)
        for tokens in sorted(prefill, reverse=True):
            if 2 * tokens > limits.max_model_len or tokens == 1:
                continue
            context = min(limits.max_model_len, max(2 * tokens, int(limits.even_pairs) + tokens // 2))
            pairs = pairs_of(context - tokens, tokens, limits.attention_span)
            expected_s = 2 * prefill[tokens] * (1 + pairs / (tokens * limits.even_pairs))
            if expected_s <= (self._budget_s if tokens == smallest else self._left_s):
                long_s = self._seconds(self._batch([tokens], [context]), _sampled(tokens))
                short = _short_prompts(tokens, limits.max_model_len)
                few = sum(pairs_of(0, n, limits.attention_span) for n in short)
                return max(0.0, (long_s - prefill[tokens]) / (pairs - few))
        return 0.0

    def _context_s(self, decode: dict[int, float]) -> float:
        """What sequences with much context take more than as many with little."""
        limits, short, smallest = self._limits, self._short_context, min(decode)
        most = min(limits.max_model_len, limits.attention_span)  # beyond, a step reads no more
        for rows in sorted(decode, reverse=True):
            context = min(most, limits.context_tokens // rows)
            if context >= 2 * short and 4 * decode[rows] <= (self._budget_s if rows == smallest else self._left_s):
                long_s = self._decode_s(rows, context)
                return max(0.0, (long_s - decode[rows]) / (rows * (context - short)))
        return 0.0

    def _seconds(self, batch: BatchInputs, sampled: int) -> float:
        seconds = self._run(batch, sampled, 1)
        self._left_s -= seconds[0]
        # The first run may have paid for what no later one pays for.
        repeats = min(self._repeats, int(self._left_s / max(seconds[0], 1e-9)))
        if repeats > 0:
            seconds += self._run(batch, sampled, repeats)
            self._left_s -= sum(seconds[1:])
        return min(seconds)

    def _batch(self, query_lens: list[int], context_lens: list[int]) -> BatchInputs:
        """Every sequence has blocks of its own as far as the pool goes, so that caches do not help."""
        blocks = [-(-context // self._limits.block_size) for context in context_lens]
        first = torch.tensor([0, *accumulate(blocks)][:-1], dtype=torch.int32)
        return BatchInputs(
            query_lens=torch.tensor(query_lens, dtype=torch.int32),
            context_lens=torch.tensor(context_lens, dtype=torch.int32),
            tables=(first[:, None] + torch.arange(max(blocks), dtype=torch.int32)) % self._limits.num_blocks,
        )


def _short_prompts(tokens: int, max_model_len: int) -> list[int]:
    """Lengths of prompts that have so many tokens together."""
    each = min(PROMPT_TOKENS, max_model_len)
    return [min(each, tokens - start) for start in range(0, tokens, each)]


def _sampled(tokens: int) -> int:
    return max(1, tokens // _SAMPLED_TOKENS)


def _rising(points: dict[int, float]) -> Curve:
    """Without the points that a larger step was faster than: those were slow by chance. Level ends would mislead."""
    kept: list[int] = []
    for count in sorted(points, reverse=True):
        if not kept or points[count] <= points[kept[-1]]:
            kept.append(count)
    kept.reverse()
    return Curve(tuple(map(float, kept)), tuple(points[count] for count in kept))


def _sustained(curve: Curve) -> Curve:
    """Where no token takes less than in a larger step: a GPU has higher clocks for a moment of arithmetic than in a row
    of such steps, and what small ones seem to gain by that is gone when they follow one another."""
    seconds = list(curve.seconds)
    for i in range(len(seconds) - 2, -1, -1):
        seconds[i] = max(seconds[i], seconds[i + 1] * curve.counts[i] / curve.counts[i + 1])
    return Curve(curve.counts, tuple(seconds))
