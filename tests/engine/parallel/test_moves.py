"""The one rule of re-sharding, for random shapes and any pair of layouts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.engine.parallel.layout import Layout
from seesaw.engine.parallel.moves import Axis, Extent, Move, Span, extents, moves, stage_layers, weight_layers


@dataclass(frozen=True)
class Case:
    """Two layouts over one rectangle of layers x slices."""

    layers: int
    slices: int
    src: list[Extent]
    dst: list[Extent]


def _layouts(world: int, layers: int, slices: int) -> list[Layout]:
    """All layouts of a world size that divide the model, as `check_layout` wants it."""
    return [
        Layout(dp, pp, world // dp // pp)
        for dp in range(1, world + 1)
        for pp in range(1, min(world, layers) + 1)
        if world % (dp * pp) == 0 and (slices % (tp := world // dp // pp) == 0 or tp % slices == 0)
    ]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    world = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    layers = draw(st.integers(1, 9))
    slices = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    fitting = _layouts(world, layers, slices)
    cut = draw(st.sampled_from([stage_layers, weight_layers]))
    axis = Axis("slices", slices)
    src, dst = (
        extents(layout, cut(layers, layout.pp), axis)
        for layout in (draw(st.sampled_from(fitting)), draw(st.sampled_from(fitting)))
    )
    return Case(layers + 2 * (cut is weight_layers), slices, src, dst)


def _at(array: np.ndarray, layers: Span, slices: Span) -> np.ndarray:
    return array[layers.start : layers.stop, slices.start : slices.stop]


def _carry_out(case: Case, todo: list[Move]) -> list[np.ndarray]:
    """What each rank holds after the moves, if before it holds its source extent and nothing else. -1: nothing."""
    model = np.arange(case.layers * case.slices).reshape(case.layers, case.slices)
    before = [np.full_like(model, -1) for _ in case.src]
    for extent in case.src:
        _at(before[extent.rank], extent.layers, extent.slices)[:] = _at(model, extent.layers, extent.slices)
    after = [np.full_like(model, -1) for _ in case.dst]
    for move in todo:
        _at(after[move.dst], move.layers, move.slices)[:] = _at(before[move.src], move.layers, move.slices)
    return after


@settings(max_examples=200, deadline=None)
@given(cases())
def test_moving_equals_owning(case: Case) -> None:
    model = np.arange(case.layers * case.slices).reshape(case.layers, case.slices)
    for extent, held in zip(case.dst, _carry_out(case, moves(case.src, case.dst)), strict=True):
        expected = np.full_like(model, -1)
        _at(expected, extent.layers, extent.slices)[:] = _at(model, extent.layers, extent.slices)
        np.testing.assert_array_equal(held, expected)


@settings(max_examples=200, deadline=None)
@given(cases())
def test_destinations_are_tiled_once_and_nothing_owned_is_sent(case: Case) -> None:
    count = np.zeros((len(case.dst), case.layers, case.slices), dtype=int)
    for move in moves(case.src, case.dst):
        _at(count[move.dst], move.layers, move.slices)[:] += 1
        own = case.src[move.dst]
        owned = len(own.layers & move.layers) * len(own.slices & move.slices)
        assert owned == (len(move.layers) * len(move.slices) if move.src == move.dst else 0)
    for extent in case.dst:
        assert _at(count[extent.rank], extent.layers, extent.slices).min() == 1
        assert count[extent.rank].sum() == extent.size


@settings(max_examples=200, deadline=None)
@given(cases())
def test_writers_of_a_replica_tile_the_whole_once(case: Case) -> None:
    for replica in {extent.replica for extent in case.src}:
        count = np.zeros((case.layers, case.slices), dtype=int)
        for extent in case.src:
            if extent.writer and extent.replica == replica:
                _at(count, extent.layers, extent.slices)[:] += 1
        assert (count == 1).all()


def test_wrong_moves_are_seen() -> None:
    """The properties above can fail: a move left out, or sent by a rank that does not own it, changes what arrives."""
    axis = Axis("kv_heads", 4)
    src, dst = (extents(layout, stage_layers(4, layout.pp), axis) for layout in (Layout(pp=4), Layout(tp=4)))
    case = Case(4, 4, src, dst)
    right = moves(src, dst)
    expected = _carry_out(case, right)
    stranger = replace(right[0], src=(right[0].src + 1) % 4)
    for wrong in (right[1:], [stranger, *right[1:]]):
        held = _carry_out(case, wrong)
        assert not all(np.array_equal(a, b) for a, b in zip(expected, held, strict=True))


def test_copies_share_the_sending() -> None:
    """From D2 to a layout where two ranks lack what both replicas hold, each replica sends to one of them."""
    axis = Axis("slices", 1)
    whole, nothing = Span(0, 4), Span(0, 0)
    src = [Extent(rank, rank, whole if rank < 2 else nothing, Span(0, 1), True) for rank in range(4)]
    dst = extents(Layout(dp=4), stage_layers(4, 1), axis)
    sent = [move.src for move in moves(src, dst) if move.src != move.dst]
    assert sorted(sent) == [0, 1]


def test_the_same_node_is_preferred() -> None:
    src = [Extent(0, 0, Span(0, 1), Span(0, 1), True, node=0), Extent(1, 0, Span(0, 1), Span(0, 1), True, node=1)]
    dst = [Extent(2, 0, Span(0, 1), Span(0, 1), True, node=1)]
    assert moves(src, dst) == [Move(1, 2, Span(0, 1), Span(0, 1))]


def test_what_nobody_owns_is_an_error() -> None:
    src = [Extent(0, 0, Span(0, 1), Span(0, 1), True)]
    dst = [Extent(0, 0, Span(0, 2), Span(0, 1), True)]
    with pytest.raises(ValueError, match="nobody owns"):
        moves(src, dst)


@given(st.integers(1, 40), st.integers(1, 12))
def test_stages_tile_the_layers_evenly(layers: int, pp: int) -> None:
    spans = stage_layers(layers, pp)
    assert [i for span in spans for i in range(span.start, span.stop)] == list(range(layers))
    sizes = [len(span) for span in spans]
    assert max(sizes) - min(sizes) <= 1
    ends = weight_layers(layers, pp)
    assert [i for span in ends for i in range(span.start, span.stop)] == list(range(layers + 2))


def test_extra_layers_go_to_the_middle() -> None:
    assert [len(span) for span in stage_layers(7, 3)] == [2, 3, 2]
    assert [len(span) for span in stage_layers(8, 3)] == [3, 3, 2]
    assert [len(span) for span in stage_layers(5, 2)] == [3, 2]


def test_shared_slices_have_one_writer() -> None:
    axis = Axis("kv_heads", 2)
    assert [axis.span(shard, 4) for shard in range(4)] == [Span(0, 1), Span(0, 1), Span(1, 2), Span(1, 2)]
    assert [axis.is_writer(shard, 4) for shard in range(4)] == [True, False, True, False]
