"""Layouts as values: their spelling, and where their ranks are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError

degrees = st.integers(1, 6)
layouts = st.builds(Layout, degrees, degrees, degrees)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("T4", Layout(tp=4)),
        ("p4", Layout(pp=4)),
        (" T2P2 ", Layout(pp=2, tp=2)),
        ("P2T2", Layout(pp=2, tp=2)),
        ("D2P2T3", Layout(2, 2, 3)),
        ("T1", Layout()),
        ("P16", Layout(pp=16)),
    ],
)
def test_parse(text: str, expected: Layout) -> None:
    assert Layout.parse(text) == expected


@pytest.mark.parametrize("text", ["", "4", "X4", "T", "T0", "T4P", "T-1", "T2T2", "T2 P2", "T4,P4"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ConfigError, match="layout"):
        Layout.parse(text)


def test_degrees_are_positive() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        Layout(tp=0)


@given(layouts)
def test_text_round_trip(layout: Layout) -> None:
    assert Layout.parse(str(layout)) == layout


@given(layouts)
def test_ranks_and_coordinates_are_one_to_one(layout: Layout) -> None:
    seen = [layout.rank(*coord) for _, coord in layout.coords()]
    assert seen == list(range(layout.world_size))


@given(layouts)
def test_replicas_and_stages_tile_the_world(layout: Layout) -> None:
    by_replica = [rank for replica in range(layout.dp) for rank in layout.replica_ranks(replica)]
    by_stage = [
        rank
        for replica in range(layout.dp)
        for stage in range(layout.pp)
        for rank in layout.stage_ranks(replica, stage)
    ]
    assert by_replica == by_stage == list(range(layout.world_size))
    for replica in range(layout.dp):
        coord = layout.coord(layout.sampling_rank(replica))
        assert coord == (replica, layout.pp - 1, 0)


def test_plan_lists_distinct_layouts() -> None:
    p4, t4 = Layout(pp=4), Layout(tp=4)
    plan = Plan(p4, p4, t4)
    assert plan.layouts == (p4, t4)
    assert plan.index(t4) == 1
    assert not plan.is_static
    assert str(plan) == "P4->P4->T4"
    assert Plan(t4, t4).is_static
    assert str(Plan(t4, t4)) == "T4"


def test_plan_needs_one_world_size() -> None:
    with pytest.raises(ConfigError, match="P4 uses 4 devices but decode layout T2 uses 2"):
        Plan(Layout(pp=4), Layout(tp=2))
    with pytest.raises(ConfigError, match="tail layout"):
        Plan(Layout(pp=4), Layout(tp=4), Layout(tp=8))
