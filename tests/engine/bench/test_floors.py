"""Counted work, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from engine.bench.floors import Ceilings, Work, exchanged_bytes, step_work
from engine.parallel.layout import Layout
from tests.tiny import tiny_shape

SHAPE = tiny_shape(layers=4, heads=8, kv_heads=4, head_dim=8, hidden=64, ffn=96, vocab=211, dtype="bfloat16")
PARAMS = 64 * (8 + 4 + 4) * 8 + 64 * 64 + 3 * 64 * 96


def test_a_layer_has_qkv_o_gate_up_and_down() -> None:
    assert SHAPE.layer_params == PARAMS


def test_decode_reads_every_weight_and_the_whole_context() -> None:
    work = step_work(SHAPE, Layout(), [(1, 10), (1, 20)])
    assert work.linear == Work(2 * 2 * 4 * PARAMS, 4 * PARAMS * 2)
    assert work.attention == Work(4 * 4 * 8 * 8 * 30, 4 * 4 * 2 * 8 * 2 * (30 + 2))
    assert work.head == Work(2 * 2 * 64 * 211, 64 * 211 * 2)


def test_prefill_attends_to_half_of_a_square() -> None:
    assert step_work(SHAPE, Layout(), [(3, 3)]).attention.flops == 4 * 4 * 8 * 8 * (1 + 2 + 3)
    assert step_work(SHAPE, Layout(), [(2, 5)]).attention.flops == 4 * 4 * 8 * 8 * (4 + 5)


def test_every_layout_shares_the_layers_work() -> None:
    whole = step_work(SHAPE, Layout(), [(3, 3)])
    for layout in (Layout(tp=4), Layout(pp=4), Layout(pp=2, tp=2)):
        part = step_work(SHAPE, layout, [(3, 3)])
        assert part.linear.flops * 4 == whole.linear.flops and part.attention.bytes * 4 == whole.attention.bytes


def test_shards_beyond_the_kv_heads_read_copies() -> None:
    eight = step_work(SHAPE, Layout(tp=8), [(1, 10)]).attention.bytes
    assert eight == step_work(SHAPE, Layout(tp=4), [(1, 10)]).attention.bytes


def test_the_floor_of_a_part_is_its_longer_time_and_parts_add_up() -> None:
    ceilings = Ceilings(matmul_flops_per_s=10.0, memory_bytes_per_s=4.0)
    assert Work(20, 4).floor_s(ceilings) == 2.0 and Work(10, 8).floor_s(ceilings) == 2.0
    work = step_work(SHAPE, Layout(), [(1, 1)])
    parts = [work.linear, work.attention, work.head]
    assert work.floor_s(ceilings) == pytest.approx(sum(part.floor_s(ceilings) for part in parts))


def test_what_a_step_exchanges() -> None:
    assert exchanged_bytes(SHAPE, Layout(tp=2), 5) == {"all_reduce": 8 * 5 * 64 * 2, "send": 0}
    assert exchanged_bytes(SHAPE, Layout(pp=2), 5) == {"all_reduce": 0, "send": 5 * 64 * 2}
    assert exchanged_bytes(SHAPE, Layout(), 5) == {"all_reduce": 0, "send": 0}
