"""The operations and bytes of steps, as they are counted, and the least time that they take on a host.

Pure arithmetic, no torch. Used by `engine.cost.estimate`, and by benchmarks that hold what they measure to a floor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seesaw.engine.cost.profile import HostProfile
from seesaw.engine.model.counts import head_params, layer_params
from seesaw.engine.model.shapes import FP8_SPEEDUP, ModelShape
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.parallel.moves import stage_layers

LAST = -1  # stage
Chunks = Sequence[tuple[int, int]]  # of a step: query tokens, and context with them


@dataclass(frozen=True)
class Work:
    """What one device does for some part of a step."""

    flops: float  # as many in 16 bits as would take the same time
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def floor_s(self, profile: HostProfile) -> float:
        """Arithmetic and memory traffic overlap at best: the larger of the two times."""
        return max(self.flops / profile.matmul_flops_per_s, self.bytes / profile.memory_bytes_per_s)


@dataclass(frozen=True)
class StepWork:
    """A step, or several, on a device of the last stage: the busiest one, since it has the head.

    Where stages differ it has the fewest layers. Whatever the others take longer, no step is faster than this.
    """

    linear: Work  # the layers' matrix products; a step reads each weight once
    attention: Work  # the K and V that are attended to are read once, the step's written
    head: Work  # of the sampled rows

    def __add__(self, other: StepWork) -> StepWork:
        """As if the parts of both were mixed perfectly: the memory traffic of one hides the arithmetic of the other."""
        return StepWork(self.linear + other.linear, self.attention + other.attention, self.head + other.head)

    def floor_s(self, profile: HostProfile) -> float:
        """Parts follow one another."""
        return sum(part.floor_s(profile) for part in (self.linear, self.attention, self.head))


def step_work(shape: ModelShape, layout: Layout, chunks: Chunks) -> StepWork:
    """Count one forward step of these chunks, whose last positions are all sampled, in one replica of a layout."""
    pairs = sum(attended_pairs(shape, context - query, context) for query, context in chunks)
    # The first query of a chunk attends to the earliest position that any of them does.
    contexts = sum(min(context, shape.attention_span + query - 1) for query, context in chunks)
    tokens = sum(query for query, _ in chunks)
    return count_work(shape, layout, tokens=tokens, pairs=pairs, contexts=contexts, sampled=len(chunks), steps=1)


def attended_pairs(shape: ModelShape, start: float, stop: float) -> float:
    """Of the queries from position `start` to before `stop`, each with every position that it attends to."""

    def up_to(position: float) -> float:
        whole = min(position, shape.attention_span)  # queries that attend to all positions up to their own
        return whole * (whole + 1) / 2 + (position - whole) * whole

    return up_to(stop) - up_to(start)


def decode_work(shape: ModelShape, layout: Layout, rows: float, contexts: float, steps: float) -> StepWork:
    """Count `steps` steps of one replica that decode `rows` tokens in sum, which attend to `contexts` in sum."""
    return count_work(shape, layout, tokens=rows, pairs=contexts, contexts=contexts, sampled=rows, steps=steps)


def count_work(
    shape: ModelShape,
    layout: Layout,
    *,
    tokens: float,
    pairs: float,
    contexts: float,
    sampled: float,
    steps: float,
    stage: int = LAST,
) -> StepWork:
    """`tokens` through the layers and `sampled` of them through the head, in `steps` steps that each read all weights.

    `pairs` are of a query and a position that it attends to; `contexts` are tokens whose K and V are read.
    """
    layers = num_layers(shape, layout, stage)
    params = layers * layer_params(shape) / layout.tp
    heads = shape.num_heads / layout.tp
    kv_heads = max(1, shape.num_kv_heads / layout.tp)
    kv_token_bytes = layers * kv_heads * 2 * shape.head_dim * shape.kv_dtype_bytes
    speedup = FP8_SPEEDUP if shape.quantization else 1
    head = head_params(shape) / layout.tp if stage in (LAST, layout.pp - 1) else 0.0
    return StepWork(
        linear=Work(2 * tokens * params / speedup, steps * params * shape.linear_dtype_bytes),
        attention=Work(4 * layers * heads * shape.head_dim * pairs, kv_token_bytes * (contexts + tokens)),
        head=Work(2 * sampled * head, steps * head * shape.dtype_bytes),
    )


def num_layers(shape: ModelShape, layout: Layout, stage: int = LAST) -> int:
    return len(stage_layers(shape.num_layers, layout.pp)[stage])


def exchanges(shape: ModelShape, layout: Layout, stage: int = LAST) -> dict[str, int]:
    """How many messages of activations a step sums over a device's shards, and passes on between stages."""
    layers = num_layers(shape, layout, stage)
    return {"sum": 2 * layers if layout.tp > 1 else 0, "send": 1 if layout.pp > 1 else 0}


def exchange_s(shape: ModelShape, layout: Layout, tokens: float, profile: HostProfile, stage: int = LAST) -> float:
    """Seconds that a device spends in the exchanges of a step of `tokens` tokens, one after another."""
    activation_bytes = tokens * shape.hidden * shape.dtype_bytes
    return sum(
        count * profile.message_s(kind, activation_bytes)
        for kind, count in exchanges(shape, layout, stage).items()
        if count
    )
