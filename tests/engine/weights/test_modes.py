"""All ways to hold weights give a rank the same tensors, for random shapes and any plan."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seesaw.engine.model.linear import Linear
from seesaw.engine.model.shapes import ModelShape, check_plan, num_slices
from seesaw.engine.model.stage import StageWeights
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.parallel.moves import Span
from seesaw.engine.values.errors import ConfigError
from seesaw.engine.weights.arena import Arena, rank_arena
from seesaw.engine.weights.dummy import DummySource
from seesaw.engine.weights.modes import ArenaWeights, ReloadWeights
from seesaw.engine.weights.placement import ALIGNMENT_BYTES, weight_extents, whole_bytes
from seesaw.engine.weights.store import WeightStore
from tests.tiny import CPU, tiny_shape


def _layouts(world: int) -> list[Layout]:
    pairs = [(dp, pp) for dp in range(1, world + 1) for pp in range(1, world + 1) if world % (dp * pp) == 0]
    return [Layout(dp, pp, world // dp // pp) for dp, pp in pairs]


@st.composite
def plans(draw: st.DrawFn) -> tuple[ModelShape, Plan]:
    heads, kv_heads = draw(st.sampled_from([(8, 8), (8, 4), (8, 2), (8, 1), (12, 6), (12, 3), (4, 2)]))
    shape = tiny_shape(
        layers=draw(st.integers(1, 5)),
        heads=heads,
        kv_heads=kv_heads,
        hidden=16,
        head_dim=draw(st.sampled_from([2, 6])),
        ffn=48,
        vocab=draw(st.sampled_from([5, 24, 31])),
        tied=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "bfloat16", "float16"])),
    )
    names = ("qkv_bias", "o_bias", "mlp_bias", "qk_norm")
    shape = replace(shape, **{name: draw(st.booleans()) for name in names})
    some = st.sampled_from(_layouts(draw(st.sampled_from([1, 2, 3, 4, 6, 8]))))
    plan = Plan(draw(some), draw(some), draw(st.none() | some))
    try:
        check_plan(plan, shape)
    except ConfigError:
        assume(False)
    return shape, plan


def _store(shape: ModelShape, plan: Plan, source: DummySource) -> WeightStore:
    flat = torch.full((whole_bytes(shape, plan),), 0xFF, dtype=torch.uint8)
    store = WeightStore(shape, plan, flat)
    for rank in reversed(range(plan.world_size)):
        store.fill(source, rank)
    return store


def _tensors(stage: StageWeights) -> list[torch.Tensor]:
    ends = [end for end in (stage.embed, stage.norm, stage.head) if end is not None]
    found: list[torch.Tensor] = []
    for value in [*(operand for layer in stage.layers for operand in layer.values()), *ends]:
        found += [part for part in (value if isinstance(value, Linear) else [value]) if isinstance(part, torch.Tensor)]
    return found


def _assert_same(one: StageWeights, other: StageWeights) -> None:
    assert (one.slices, one.num_slices) == (other.slices, other.num_slices)
    for a, b in zip(_tensors(one), _tensors(other), strict=True):
        assert torch.equal(a, b)  # NaN equals nothing, so poison would show
        assert a.is_contiguous() and b.is_contiguous()


@settings(max_examples=40, deadline=None)
@given(plans(), st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_all_modes_hold_the_same(case: tuple[ModelShape, Plan], order: list[int]) -> None:
    shape, plan = case
    source = DummySource(shape, 7)
    store = _store(shape, plan, source)
    for rank in range(plan.world_size):
        arenas = [rank_arena(shape, plan, layout, rank) for layout in plan.layouts]
        resident = ArenaWeights(arenas, source, CPU)
        reload = ReloadWeights(store, rank, CPU, poison=True)
        for wanted in order:
            index = wanted % len(plan.layouts)
            switched = reload.current != index
            copied_bytes = reload.switch(index)
            held_bytes = sum(arenas[index].tensor(store.flat, spec).nbytes for spec in arenas[index].specs)
            assert copied_bytes == (held_bytes if switched else 0)
            _assert_same(resident.stage(index), reload.stage(index))


def test_addresses_never_change() -> None:
    shape, plan = tiny_shape(), Plan(Layout(pp=2), Layout(tp=2))
    weights = ReloadWeights(_store(shape, plan, DummySource(shape, 0)), 1, CPU, poison=True)
    seen = []
    for index in (0, 1, 0, 1):
        weights.switch(index)
        seen.append([tensor.data_ptr() for tensor in _tensors(weights.stage(index))])
    assert seen[0] == seen[2] and seen[1] == seen[3]


def test_another_layout_is_refused() -> None:
    shape, plan = tiny_shape(), Plan(Layout(pp=2), Layout(tp=2))
    weights = ReloadWeights(_store(shape, plan, DummySource(shape, 0)), 0, CPU)
    with pytest.raises(ValueError, match="switch first"):
        weights.stage(0)
    weights.switch(1)
    with pytest.raises(ValueError, match="in layout 1, not 0"):
        weights.stage(0)
    weights.stage(1)


def test_poison_really_wipes_the_arena() -> None:
    shape, plan = tiny_shape(layers=3), Plan(Layout(pp=3), Layout(dp=3))
    weights = ReloadWeights(_store(shape, plan, DummySource(shape, 0)), 1, CPU, poison=True)
    weights.switch(1)
    stage = weights.stage(1)
    weights.switch(0)  # one layer of three: the rest of the arena holds nothing
    assert any(tensor.isnan().any() for tensor in _tensors(stage))


@settings(max_examples=40, deadline=None)
@given(plans())
def test_arenas_hold_each_tensor_once(case: tuple[ModelShape, Plan]) -> None:
    """Aligned, inside the arena, apart from each other; a tied head beside its embedding is the embedding."""
    shape, plan = case
    for layout in plan.layouts:
        for extent in weight_extents(shape, plan, layout):
            arena = Arena(shape, num_slices(plan), extent.layers, extent.slices)
            flat = torch.empty(arena.total_bytes, dtype=torch.uint8)
            stage = arena.stage(flat)
            both_ends = stage.embed is not None and stage.head is not None
            spans = sorted({(t.data_ptr() - flat.data_ptr(), t.nbytes) for t in _tensors(stage)})
            assert len(spans) == len(_tensors(stage)) - (shape.tied and both_ends)
            assert all(start % ALIGNMENT_BYTES == 0 for start, _ in spans)
            ends = [start + size for start, size in spans]
            assert ends[-1] <= arena.total_bytes
            assert all(end <= start for end, (start, _) in zip(ends, spans[1:], strict=False))


def test_a_store_that_is_too_small_is_refused() -> None:
    shape, plan = tiny_shape(), Plan(Layout(), Layout())
    with pytest.raises(ValueError, match="weight store needs"):
        WeightStore(shape, plan, torch.empty(whole_bytes(shape, plan) - 1, dtype=torch.uint8))


def test_tied_store_has_one_copy() -> None:
    plan = Plan(Layout(), Layout())
    apart, tied = (whole_bytes(tiny_shape(tied=tied), plan) for tied in (False, True))
    assert apart - tied == -(-211 * 64 * 4 // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    last_stage = Arena(tiny_shape(tied=True), 1, Span(3, 6), Span(0, 1))
    assert "head" in {spec.name for spec in last_stage.specs}
