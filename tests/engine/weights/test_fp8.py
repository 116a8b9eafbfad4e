"""Weights in 8 bits: rounded while they are read or read as they are, and the same numbers in every layout."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seesaw.engine.model.counts import head_params
from seesaw.engine.model.linear import Linear
from seesaw.engine.model.quantization import BLOCK, Kind, Quantization
from seesaw.engine.model.shapes import ModelShape, check_plan
from seesaw.engine.ops.fp8 import E4M3, Fp8Format, dequantized, quantize
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.parallel.moves import Span
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.arena import rank_arena
from seesaw.engine.weights.modes import ArenaWeights, ReloadWeights
from seesaw.engine.weights.placement import whole_bytes
from seesaw.engine.weights.source import Source
from seesaw.engine.weights.store import WeightStore
from tests.tiny import CPU, tiny_shape


class Checkpoint(Source):
    """Random tensors of a quantized checkpoint, made when they are first asked for, and all kept."""

    def __init__(self, kind: Kind, quantization: Quantization | None = None) -> None:
        """`quantization` names those that are kept in floats."""
        self._kind = kind
        self._quantization = quantization or Quantization(kind)
        self.tensors: dict[str, torch.Tensor] = {}

    def read(self, name: str, shape: tuple[int, ...], part: Span, dim: int = 0) -> torch.Tensor:
        if name not in self.tensors:
            self.tensors[name] = self._make(name, shape)
        whole = self.tensors[name]
        assert tuple(whole.shape) == shape
        return whole.narrow(dim, part.start, len(part))

    def _make(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(len(self.tensors))
        if "scale" in name:
            return torch.rand(shape, generator=generator) + 0.1
        numbers = torch.randn(shape, generator=generator)
        kept = self._quantization.ignores(name.removesuffix(".weight"))
        quantized = self._kind != "float" and name.endswith("proj.weight") and not kept
        return (numbers * 9).to(E4M3) if quantized else numbers

    def dequantized(self, name: str) -> torch.Tensor:
        """A layer's weight as whoever made the checkpoint meant it, or as it is when it was rounded here."""
        weight = self.tensors[f"{name}.weight"]
        rows, columns = weight.shape
        match self._kind:
            case "float":
                return dequantized(*quantize(weight, Fp8Format()))
            case "tensor" | "channel":
                return weight.float() * self.tensors[f"{name}.weight_scale"].reshape(-1, 1)
            case "blocks":
                scales = self.tensors[f"{name}.weight_scale_inv"].repeat_interleave(BLOCK, 0)
                return weight.float() * scales.repeat_interleave(BLOCK, 1)[:rows, :columns]


def _layouts(world: int) -> list[Layout]:
    pairs = [(dp, pp) for dp in (1, 2) for pp in range(1, world + 1) if world % (dp * pp) == 0]
    return [Layout(dp, pp, world // dp // pp) for dp, pp in pairs]


@st.composite
def cases(draw: st.DrawFn) -> tuple[ModelShape, Plan]:
    """Sizes whose slices end on blocks, and within them."""
    heads, kv_heads, head_dim = draw(st.sampled_from([(8, 4, 32), (4, 2, 128), (4, 1, 128), (4, 4, 96)]))
    shape = tiny_shape(
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        hidden=draw(st.sampled_from([256, 320])),
        head_dim=head_dim,
        ffn=draw(st.sampled_from([256, 512, 352])),
        vocab=24,
    )
    quantization = Quantization(draw(st.sampled_from(get_args(Kind))))
    some = st.sampled_from(_layouts(draw(st.sampled_from([1, 2, 4]))))
    plan = Plan(draw(some), draw(some))
    try:
        check_plan(plan, shape)
    except ConfigError:
        assume(False)
    return replace(shape, quantization=quantization), plan


def _operands(weights: ArenaWeights | ReloadWeights, layout: int) -> list[tuple[torch.Tensor, ...]]:
    layers = weights.stage(layout).layers
    linears = [operand for layer in layers for operand in layer.values() if isinstance(operand, Linear)]
    return [tuple(part for part in linear if isinstance(part, torch.Tensor)) for linear in linears]


@settings(max_examples=40, deadline=None)
@given(cases())
def test_every_layout_has_the_checkpoints_numbers(case: tuple[ModelShape, Plan]) -> None:
    shape, plan = case
    assert shape.quantization is not None
    source = Checkpoint(shape.quantization.checkpoint)
    store = WeightStore(shape, plan, torch.full((whole_bytes(shape, plan),), 0xFF, dtype=torch.uint8))
    for rank in range(plan.world_size):
        store.fill(source, rank)
    for rank in range(plan.world_size):
        arenas = [rank_arena(shape, plan, layout, rank) for layout in plan.layouts]
        resident, reload = ArenaWeights(arenas, source, CPU), ReloadWeights(store, rank, CPU, poison=True)
        for index, arena in enumerate(arenas):
            reload.switch(index)
            for a, b in zip(_operands(resident, index), _operands(reload, index), strict=True):
                assert all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b, strict=True))
            for local, layer in enumerate(
                range(max(1, arena.layers.start), min(arena.layers.stop, shape.num_layers + 1))
            ):
                _check_layer(resident, index, local, layer, source)


def _check_layer(weights: ArenaWeights, index: int, local: int, layer: int, source: Checkpoint) -> None:
    """Of `o` and `gate_up`, of which every number has one place in a layout."""
    stage = weights.stage(index)
    operands, share = stage.layers[local], stage.slices
    prefix = f"model.layers.{layer - 1}."
    o, gate_up = operands["o"], operands["gate_up"]
    assert isinstance(o, Linear) and isinstance(gate_up, Linear)
    whole = source.dequantized(prefix + "self_attn.o_proj")
    each = whole.shape[1] // stage.num_slices
    assert torch.equal(_values(o), whole[:, share.start * each : share.stop * each])
    gate, up = (source.dequantized(f"{prefix}mlp.{name}_proj") for name in ("gate", "up"))
    each = len(gate) // stage.num_slices
    rows = [part[n * each : (n + 1) * each] for n in range(share.start, share.stop) for part in (gate, up)]
    assert torch.equal(_values(gate_up), torch.cat(rows))


def _values(linear: Linear) -> torch.Tensor:
    assert linear.scales is not None
    return dequantized(linear.data, linear.scales[:, None] if linear.scales.ndim == 1 else linear.scales)


def test_layers_that_are_named_keep_their_dtype() -> None:
    quantization = Quantization("channel", ("model.layers.0.mlp.down_proj", r".*\.1\.self_attn\.[qkv]_proj"))
    shape = replace(tiny_shape(layers=2, head_dim=16), quantization=quantization)
    plan = Plan(Layout(), Layout())
    stage = ArenaWeights([rank_arena(shape, plan, plan.first, 0)], Checkpoint("channel", quantization), CPU)
    first, second = stage.stage(0).layers
    kinds = [
        [operand.data.dtype == E4M3 for operand in layer.values() if isinstance(operand, Linear)]
        for layer in (first, second)
    ]
    assert kinds == [[True, True, True, False], [False, True, True, True]]


def test_half_of_a_product_is_refused() -> None:
    shape = replace(tiny_shape(), quantization=Quantization("channel", ("model.layers.1.mlp.up_proj",)))
    with pytest.raises(ConfigError, match=r"only some of model.layers.1.mlp.gate_proj, model.layers.1.mlp.up_proj"):
        list(rank_arena(shape, Plan(Layout(), Layout()), Layout(), 0).specs)


def test_weights_take_half_the_room() -> None:
    plan = Plan(Layout(), Layout())
    shape = replace(tiny_shape(hidden=512, ffn=2048, dtype="bfloat16"), tied=True)
    ends = 2 * head_params(shape) + 1024
    full, rounded = (whole_bytes(replace(shape, quantization=q), plan) - ends for q in (None, Quantization()))
    assert 0.5 < rounded / full < 0.52
