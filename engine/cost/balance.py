"""What makes a pipeline's steps alike: costs of chunks and rows in one unit. Used by the scheduler's batcher.

The unit is a token: the time that one more token of a prompt takes in a large step. Only ratios of a layout's measured
times matter here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from seesaw.engine.cost.times import Curve, LayoutTimes, pairs_of

MIN_CHUNK_TOKENS = 256  # of prompts, in a pipeline's step that has any
_EFFICIENCY = 0.8  # of a large step, that a mixed one should reach


@dataclass(frozen=True)
class StepCost:
    """Costs of a layout's steps, in tokens."""

    per_pair: float  # of a prompt's token, for each token that it attends to
    per_context: float  # of a decoding token, for each token whose K and V it reads
    mixed: float  # what a step that decodes is filled up to with prompts: more of them gain little, and slow it down

    @classmethod
    def of(cls, times: LayoutTimes) -> StepCost:
        stage = max(times.stages, key=lambda stage: stage.prefill.steepness)
        token_s = stage.prefill.steepness
        if token_s <= 0:  # a step takes as long, whatever it holds
            return TOKENS_ONLY
        return cls(
            per_pair=stage.pair_s / token_s,
            per_context=stage.context_s / token_s,
            mixed=_efficient_tokens(stage.prefill, token_s),
        )

    def decode(self, rows: float, context: float) -> float:
        """Of one token each of `rows` sequences, which have `context` tokens together."""
        return rows + self.per_context * context

    def chunk(self, start: int, tokens: int) -> float:
        """Of a prompt's `tokens` from position `start` on."""
        return tokens + self.per_pair * pairs_of(start, tokens)

    def tokens_within(self, start: int, budget: float, most: int) -> int:
        """The longest chunk of up to `most` tokens from position `start` on that costs no more than `budget`, which may
        be infinite, but at least a token."""
        if self.chunk(start, most) <= budget:
            return most
        # The positive root of chunk(start, x) = budget, in the form that also holds for a `per_pair` of almost 0.
        linear = 1 + self.per_pair * start
        root = 2 * budget / (linear + math.sqrt(linear * linear + 2 * self.per_pair * budget))
        return min(most, max(1, int(root)))


def _efficient_tokens(curve: Curve, token_s: float) -> float:
    """The least tokens that make up `_EFFICIENCY` of their step's time."""
    points = list(zip(curve.counts, curve.seconds, strict=True))
    for (left, left_s), (right, right_s) in pairwise([(0.0, points[0][1]), *points]):
        if right * token_s >= _EFFICIENCY * right_s:
            slope = (right_s - left_s) / (right - left)
            if token_s <= _EFFICIENCY * slope:
                return right
            return min(right, max(left, 1.0, _EFFICIENCY * (left_s - slope * left) / (token_s - _EFFICIENCY * slope)))
    return points[-1][0]


TOKENS_ONLY = StepCost(per_pair=0.0, per_context=0.0, mixed=math.inf)
