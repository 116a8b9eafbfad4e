"""What a forward costs: the arithmetic by which micro-batches are made alike. Used by `stepper`.

The unit is a token: the time of one token's matrix products in a large step, over all layers. All else is expressed in
it by counting operations and bytes, so that only ratios of a device's rates matter, which differ little between GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.model.shapes import ModelShape

# Tokens whose matrix products take as long as reading the weights (2 bytes each). An H100 sustains 684 TFLOP/s and
# reads 2.99 TB/s (docs/performance.md): 229 tokens.
KNEE_TOKENS = 256
# Time of an operation of prefill attention over that of matrix products: an H100's attention reaches some 450 TFLOP/s.
ATTENTION_COST = 1.5


@dataclass(frozen=True)
class StepCost:
    """Costs of a model's forwards, in tokens."""

    per_pair: float  # of a prompt's token, for each token that it attends to
    per_context: float  # of a decoding token, for each token whose K and V it reads
    head: float  # of reading the head's weights

    @classmethod
    def of(cls, shape: ModelShape) -> StepCost:
        kv_elements = 2 * shape.num_kv_heads * shape.head_dim
        return cls(
            per_pair=ATTENTION_COST * 2 * shape.num_heads * shape.head_dim / shape.layer_params,
            per_context=KNEE_TOKENS * kv_elements / shape.layer_params,
            head=KNEE_TOKENS * shape.head_params / (shape.num_layers * shape.layer_params),
        )

    def decode(self, rows: int, context: int) -> float:
        """Of one token each of `rows` sequences, which have `context` tokens together."""
        return rows + self.per_context * context

    def chunk(self, start: int, tokens: int) -> float:
        """Of a prompt's `tokens` from position `start` on."""
        return tokens + self.per_pair * tokens * (start + tokens / 2)

    def tokens_within(self, start: int, budget: float) -> int:
        """The longest chunk from position `start` on that costs no more than `budget`, but at least a token."""
        # The positive root of chunk(start, x) = budget, in the form that also holds for a `per_pair` of almost 0.
        linear = 1 + self.per_pair * start
        root = 2 * budget / (linear + math.sqrt(linear * linear + 2 * self.per_pair * budget))
        return max(1, int(root))

    def micro_batches(self, stage_layers: Sequence[int], rows: int, context: int) -> int:
        """In how many steps the running sequences (`rows`, with `context` tokens together) decode soonest.

        With one for each stage the last stage, which has the head, is always busy, and all wait for it. With one fewer
        a token takes no longer than its way through the stages, but larger steps, which costs more where rows do not
        hide behind reading the weights.
        """
        layers = sum(stage_layers)

        def cycle(steps: int) -> float:
            # Arithmetic and reading overlap in part: 256 rows measured 1.4 times either of the two.
            step = math.hypot(rows / steps, KNEE_TOKENS) + self.per_context * context / steps
            stages = [step * share / layers for share in stage_layers]
            stages[-1] += self.head
            return max(steps * max(stages), sum(stages))

        return min(range(len(stage_layers), 0, -1), key=cycle)


TOKENS_ONLY = StepCost(per_pair=0.0, per_context=0.0, head=0.0)
