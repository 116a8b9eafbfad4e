"""What weights a Llama has and how they are cut: a pure description, and the tensors of one stage.

Weight layers are numbered as in `parallel.moves.weight_layers`: 0 is the embedding, 1 ... n the decoder
layers, n + 1 the final norm and the head. Every sliced tensor is stored slice-major, `[slices, rows, hidden]`,
so that any range of slices is one range of bytes. Used by the arena, the loader and the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from engine.model.shapes import ModelShape
from engine.parallel.moves import Span


class TensorSpec(NamedTuple):
    """One tensor of one weight layer. `shape` is that of a slice, or of the whole if it is replicated."""

    layer: int
    name: str
    shape: tuple[int, ...]
    sliced: bool


@dataclass(frozen=True)
class SliceShape:
    """How much of each axis one of `num_slices` weight slices holds."""

    shape: ModelShape
    num_slices: int

    @property
    def heads(self) -> int:
        return self.shape.num_heads // self.num_slices

    @property
    def kv_heads(self) -> int:
        """At least one: with more slices than KV heads, neighbouring slices hold copies of one head."""
        return max(1, self.shape.num_kv_heads // self.num_slices)

    def kv_span(self, slice_: int) -> Span:
        first = slice_ * self.shape.num_kv_heads // self.num_slices
        return Span(first, first + self.kv_heads)

    @property
    def ffn(self) -> int:
        return self.shape.ffn // self.num_slices

    @property
    def vocab(self) -> int:
        return self.shape.padded_vocab(self.num_slices) // self.num_slices


def tensor_specs(shape: ModelShape, num_slices: int) -> Iterator[TensorSpec]:
    """All weights, by layer. The head is listed even if it is tied to the embedding."""
    part = SliceShape(shape, num_slices)
    hidden, head_dim, last = shape.hidden, shape.head_dim, shape.num_layers + 1
    yield TensorSpec(0, "embed", (part.vocab, hidden), True)
    for layer in range(1, last):
        yield TensorSpec(layer, "input_norm", (hidden,), False)
        yield TensorSpec(layer, "qkv", ((part.heads + 2 * part.kv_heads) * head_dim, hidden), True)
        yield TensorSpec(layer, "o", (part.heads * head_dim, hidden), True)
        yield TensorSpec(layer, "post_norm", (hidden,), False)
        yield TensorSpec(layer, "gate_up", (2 * part.ffn, hidden), True)
        yield TensorSpec(layer, "down", (part.ffn, hidden), True)
    yield TensorSpec(last, "norm", (hidden,), False)
    yield TensorSpec(last, "head", (part.vocab, hidden), True)


class LayerWeights(NamedTuple):
    """A decoder layer's weights for n slices. `qkv` and `gate_up` are used as `x @ W.T`, `o` and `down` as `x @ W`."""

    input_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [n * (q, k and v rows of a slice), hidden]
    o: torch.Tensor  # [n * heads * head_dim, hidden]
    post_norm: torch.Tensor  # [hidden]
    gate_up: torch.Tensor  # [n * (gate, then up rows of a slice), hidden]
    down: torch.Tensor  # [n * ffn, hidden]


@dataclass(frozen=True)
class StageWeights:
    """What a rank holds in one layout: views, whose addresses never change. Ends it does not hold are None."""

    num_slices: int  # of the whole model
    slices: Span  # this rank's
    layers: list[LayerWeights]
    embed: torch.Tensor | None  # [n * vocabulary rows of a slice, hidden]
    norm: torch.Tensor | None  # [hidden]
    head: torch.Tensor | None  # as embed
