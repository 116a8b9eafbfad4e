"""How fast a step can be at best: counted operations and bytes over measured ceilings. Pure arithmetic, no torch.

Used by `seesaw bench limits`, by `engine.bench.bounds`, and by whoever compares a measured step with its floor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.model.shapes import ModelShape
from engine.parallel.layout import Layout
from engine.parallel.moves import stage_layers

Chunks = Sequence[tuple[int, int]]  # of a step: query tokens, and context with them


@dataclass(frozen=True)
class Ceilings:
    """What one device can do at most, and what an exchange with the others costs."""

    matmul_flops_per_s: float
    memory_bytes_per_s: float  # bytes read plus bytes written
    link_s: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # by kind: seconds by a message's bytes

    @classmethod
    def from_json(cls, limits: Mapping[str, Any]) -> Ceilings:
        """From what `seesaw bench limits` saves.

        Raises AttributeError, KeyError, TypeError or ValueError if it is something else.
        """
        ceilings = cls(
            matmul_flops_per_s=float(limits["matmul_flops_per_s"]),
            memory_bytes_per_s=float(limits["memory_bytes_per_s"]),
            link_s={
                kind: {int(size): float(seconds) for size, seconds in by_bytes.items()}
                for kind, by_bytes in limits.get("links", {}).items()
            },
        )
        # What is divided by, and what is interpolated between.
        rates = [ceilings.matmul_flops_per_s, ceilings.memory_bytes_per_s]
        sizes = [max(by_bytes) for by_bytes in ceilings.link_s.values()]
        if not all(math.isfinite(value) and value > 0 for value in (*rates, *sizes)):
            raise ValueError("rates and sizes must be positive")
        return ceilings

    def message_s(self, kind: str, num_bytes: float) -> float:
        """Seconds of one message, between the measured sizes and beyond the largest in proportion to its bytes.

        0 if links were not measured.
        """
        if kind not in self.link_s:
            return 0.0
        sizes, seconds = zip(*sorted(self.link_s[kind].items()), strict=True)
        return float(np.interp(num_bytes, sizes, seconds)) * max(1.0, num_bytes / sizes[-1])


@dataclass(frozen=True)
class Work:
    """What one device does for some part of a step."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def floor_s(self, ceilings: Ceilings) -> float:
        """Arithmetic and memory traffic overlap at best: the larger of the two times."""
        return max(self.flops / ceilings.matmul_flops_per_s, self.bytes / ceilings.memory_bytes_per_s)


@dataclass(frozen=True)
class StepWork:
    """A step, or several, on a device of the last stage: the busiest one, since it has the head.

    Where stages differ it has the fewest layers. Whatever the others take longer, no step is faster than this.
    """

    linear: Work  # the layers' matrix products; a step reads each weight once
    attention: Work  # the context's K and V are read once, the step's written
    head: Work  # of the sampled rows

    def __add__(self, other: StepWork) -> StepWork:
        """As if the parts of both were mixed perfectly: the memory traffic of one hides the arithmetic of the other."""
        return StepWork(self.linear + other.linear, self.attention + other.attention, self.head + other.head)

    def floor_s(self, ceilings: Ceilings) -> float:
        """Parts follow one another."""
        return sum(part.floor_s(ceilings) for part in (self.linear, self.attention, self.head))


def step_work(shape: ModelShape, layout: Layout, chunks: Chunks) -> StepWork:
    """Count one forward step of these chunks, whose last positions are all sampled, in one replica of a layout."""
    # Query i of a chunk attends to all positions up to its own.
    pairs = sum(query * (context - (query - 1) / 2) for query, context in chunks)
    tokens, contexts = (sum(column) for column in zip(*chunks, strict=True))
    return count_work(shape, layout, tokens=tokens, pairs=pairs, contexts=contexts, sampled=len(chunks), steps=1)


def decode_work(shape: ModelShape, layout: Layout, rows: float, contexts: float, steps: float) -> StepWork:
    """Count `steps` steps of one replica that decode `rows` tokens in sum, over contexts of `contexts` in sum."""
    return count_work(shape, layout, tokens=rows, pairs=contexts, contexts=contexts, sampled=rows, steps=steps)


def count_work(
    shape: ModelShape, layout: Layout, *, tokens: float, pairs: float, contexts: float, sampled: float, steps: float
) -> StepWork:
    """`tokens` through the layers and `sampled` of them through the head, in `steps` steps that each read all weights.

    `pairs` are of a query and a position that it attends to; `contexts` are tokens whose K and V are read.
    """
    layers = _last_layers(shape, layout)
    params = layers * shape.layer_params / layout.tp
    heads = shape.num_heads / layout.tp
    kv_heads = max(1, shape.num_kv_heads / layout.tp)
    kv_token_bytes = layers * kv_heads * 2 * shape.head_dim * shape.dtype_bytes
    head = shape.head_params / layout.tp
    return StepWork(
        linear=Work(2 * tokens * params, steps * params * shape.dtype_bytes),
        attention=Work(4 * layers * heads * shape.head_dim * pairs, kv_token_bytes * (contexts + tokens)),
        head=Work(2 * sampled * head, steps * head * shape.dtype_bytes),
    )


def _last_layers(shape: ModelShape, layout: Layout) -> int:
    return len(stage_layers(shape.num_layers, layout.pp)[-1])


def exchanges(shape: ModelShape, layout: Layout) -> dict[str, int]:
    """How many messages of activations a step sums over a device's shards, and sends to its next stage."""
    layers = _last_layers(shape, layout)
    return {"sum": 2 * layers if layout.tp > 1 else 0, "send": 1 if layout.pp > 1 else 0}


def exchange_s(shape: ModelShape, layout: Layout, tokens: float, ceilings: Ceilings) -> float:
    """Seconds that a device spends in the exchanges of a step of `tokens` tokens, one after another."""
    activation_bytes = tokens * shape.hidden * shape.dtype_bytes
    return sum(
        count * ceilings.message_s(kind, activation_bytes) for kind, count in exchanges(shape, layout).items() if count
    )
