"""How fast a step can be at best: counted operations and bytes over measured ceilings. Pure arithmetic, no torch.

Used by `seesaw bench limits`, and by whoever compares a measured step with its floor.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.model.shapes import ModelShape
from engine.parallel.layout import Layout

Chunks = list[tuple[int, int]]  # of a step: query tokens, and context with them


@dataclass(frozen=True)
class Ceilings:
    """Rates of one device that a step can be held against."""

    matmul_flops_per_s: float
    memory_bytes_per_s: float  # bytes read plus bytes written


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
    """A step on the busiest device: of the last stage, which has the head, and as many layers as any."""

    linear: Work  # the layers' matrix products; each weight is read once
    attention: Work  # the context's K and V are read once, the step's written
    head: Work  # of the sampled rows

    def floor_s(self, ceilings: Ceilings) -> float:
        """Parts follow one another."""
        return sum(part.floor_s(ceilings) for part in (self.linear, self.attention, self.head))


def step_work(shape: ModelShape, layout: Layout, chunks: Chunks) -> StepWork:
    """Count one forward step of these chunks, whose last positions are all sampled, in one replica of a layout."""
    layers = -(-shape.num_layers // layout.pp)
    tokens = sum(query for query, _ in chunks)
    params = layers * shape.layer_params / layout.tp
    # Query i of a chunk attends to all positions up to its own.
    pairs = sum(query * (context - (query - 1) / 2) for query, context in chunks)
    heads = shape.num_heads / layout.tp
    kv_heads = max(1, shape.num_kv_heads / layout.tp)
    kv_token_bytes = layers * kv_heads * 2 * shape.head_dim * shape.dtype_bytes
    head = shape.head_params / layout.tp
    return StepWork(
        linear=Work(2 * tokens * params, params * shape.dtype_bytes),
        attention=Work(
            4 * layers * heads * shape.head_dim * pairs,
            kv_token_bytes * (sum(context for _, context in chunks) + tokens),
        ),
        head=Work(2 * len(chunks) * head, head * shape.dtype_bytes),
    )


def exchanged_bytes(shape: ModelShape, layout: Layout, tokens: int) -> dict[str, float]:
    """Bytes of activations that a step all-reduces on a device, and sends to the next stage."""
    activation = float(tokens * shape.hidden * shape.dtype_bytes)
    layers = -(-shape.num_layers // layout.pp)
    return {
        "all_reduce": 2 * layers * activation if layout.tp > 1 else 0.0,
        "send": activation if layout.pp > 1 else 0.0,
    }
