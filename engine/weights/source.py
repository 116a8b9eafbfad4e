"""Where weights come from, and how a checkpoint's tensors are packed into the slices of an arena.

A source knows tensors by their names and shapes in a transformers checkpoint and reads only the part that
is asked for; the packing (fused, slice-major, KV heads repeated, vocabulary padded) is here and only here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from engine.parallel.moves import Span
from engine.weights.arena import Arena
from engine.weights.placement import SliceShape, TensorSpec


class Source(ABC):
    """Reads parts of a Llama's tensors, in any order. The same part is always the same numbers."""

    @abstractmethod
    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        """Entries `part` of dimension `dim` of the named tensor, whose whole shape is `shape`; any float type.

        The result may be a view that is valid until the next call. Raises ConfigError, naming tensor and file,
        if it is missing or has another shape.
        """


def fill(arena: Arena, flat: torch.Tensor, source: Source, layers: Span | None = None) -> None:
    """Read the arena's tensors (only those of `layers`, if given) from the source, converted to its dtype."""
    packer = _Packer(arena, source)
    for spec in arena.specs:
        if layers is None or layers.start <= spec.layer < layers.stop:
            packer.pack(spec, arena.tensor(flat, spec))


class _Packer:
    """Writes tensors in the arena's form."""

    def __init__(self, arena: Arena, source: Source) -> None:
        self._shape, self._slices, self._source = arena.shape, arena.slices, source
        self._part = SliceShape(arena.shape, arena.num_slices)

    def pack(self, spec: TensorSpec, out: torch.Tensor) -> None:
        """Fill `out`: `[slices, *spec.shape]` or, replicated, `spec.shape`."""
        shape, prefix = self._shape, f"model.layers.{spec.layer - 1}."
        match spec.name:
            case "input_norm":
                self._replicated(out, prefix + "input_layernorm.weight")
            case "post_norm":
                self._replicated(out, prefix + "post_attention_layernorm.weight")
            case "norm":
                self._replicated(out, "model.norm.weight")
            case "qkv":
                self._qkv(out, prefix + "self_attn.")
            case "gate_up":
                self._gate_up(out, prefix + "mlp.")
            case "o":
                self._columns(out, prefix + "self_attn.o_proj.weight", shape.num_heads * shape.head_dim)
            case "down":
                self._columns(out, prefix + "mlp.down_proj.weight", shape.ffn)
            case "embed":
                self._vocabulary(out, "model.embed_tokens.weight")
            case "head":
                self._vocabulary(out, "model.embed_tokens.weight" if shape.tied else "lm_head.weight")
            case _:
                raise ValueError(f"no tensor {spec.name!r} in a Llama")

    def _replicated(self, out: torch.Tensor, name: str) -> None:
        out.copy_(self._source.read(name, tuple(out.shape), Span(0, len(out))))

    def _qkv(self, out: torch.Tensor, prefix: str) -> None:
        dim, part = self._shape.head_dim, self._part
        for slice_, rows in zip(range(self._slices.start, self._slices.stop), out, strict=True):
            kv = part.kv_span(slice_)
            heads = {
                "q_proj": (self._shape.num_heads, Span(slice_ * part.heads, (slice_ + 1) * part.heads)),
                "k_proj": (self._shape.num_kv_heads, kv),
                "v_proj": (self._shape.num_kv_heads, kv),
            }
            start = 0
            for name, (total, span) in heads.items():
                wanted = Span(span.start * dim, span.stop * dim)
                read = self._source.read(f"{prefix}{name}.weight", (total * dim, self._shape.hidden), wanted)
                rows[start : start + len(wanted)].copy_(read)
                start += len(wanted)

    def _gate_up(self, out: torch.Tensor, prefix: str) -> None:
        shape, ffn = (self._shape.ffn, self._shape.hidden), self._part.ffn
        for slice_, rows in zip(range(self._slices.start, self._slices.stop), out, strict=True):
            wanted = Span(slice_ * ffn, (slice_ + 1) * ffn)
            rows[:ffn].copy_(self._source.read(prefix + "gate_proj.weight", shape, wanted))
            rows[ffn:].copy_(self._source.read(prefix + "up_proj.weight", shape, wanted))

    def _columns(self, out: torch.Tensor, name: str, inputs: int) -> None:
        each = out.shape[1]
        wanted = Span(self._slices.start * each, self._slices.stop * each)
        read = self._source.read(name, (self._shape.hidden, inputs), wanted, dim=1)
        out.flatten(0, 1).copy_(read.T)

    def _vocabulary(self, out: torch.Tensor, name: str) -> None:
        rows = out.flatten(0, 1)
        each, vocab = self._part.vocab, self._shape.vocab
        wanted = Span(self._slices.start * each, self._slices.stop * each) & Span(0, vocab)
        if len(wanted):
            rows[: len(wanted)].copy_(self._source.read(name, (vocab, self._shape.hidden), wanted))
        rows[len(wanted) :].zero_()
