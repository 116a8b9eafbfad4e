"""Counted work, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from seesaw.engine.cost.profile import HostProfile, read_profile
from seesaw.engine.cost.work import Work, decode_work, exchange_s, exchanges, step_work
from seesaw.engine.model.counts import head_params, layer_params
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.values.errors import ConfigError
from tests.tiny import tiny_shape

SHAPE = tiny_shape(layers=4, heads=8, kv_heads=4, head_dim=8, hidden=64, ffn=96, vocab=211, dtype="bfloat16")
PARAMS = 64 * (8 + 4 + 4) * 8 + 64 * 64 + 3 * 64 * 96


def test_a_layer_has_qkv_o_gate_up_and_down() -> None:
    assert layer_params(SHAPE) == PARAMS and head_params(SHAPE) == 64 * 211


def test_decode_reads_every_weight_and_the_whole_context() -> None:
    work = step_work(SHAPE, Layout(), [(1, 10), (1, 20)])
    assert work.linear == Work(2 * 2 * 4 * PARAMS, 4 * PARAMS * 2)
    assert work.attention == Work(4 * 4 * 8 * 8 * 30, 4 * 4 * 2 * 8 * 2 * (30 + 2))
    assert work.head == Work(2 * 2 * 64 * 211, 64 * 211 * 2)


def test_prefill_attends_to_half_of_a_square() -> None:
    assert step_work(SHAPE, Layout(), [(3, 3)]).attention.flops == 4 * 4 * 8 * 8 * (1 + 2 + 3)
    assert step_work(SHAPE, Layout(), [(2, 5)]).attention.flops == 4 * 4 * 8 * 8 * (4 + 5)


def test_attention_reads_no_more_than_its_window() -> None:
    """Five tokens with themselves. A chunk reads what its first token sees, and all behind that."""
    shape = replace(SHAPE, sliding_window=5)
    pair_flops, token_bytes = 4 * 4 * 8 * 8, 4 * 4 * 2 * 8 * 2
    decode = step_work(shape, Layout(), [(1, 3), (1, 5), (1, 20)]).attention
    assert decode == Work(pair_flops * (3 + 5 + 5), token_bytes * (3 + 5 + 5 + 3))
    assert step_work(shape, Layout(), [(7, 7)]).attention == Work(pair_flops * (15 + 5 + 5), token_bytes * (7 + 7))
    assert step_work(shape, Layout(), [(2, 20)]).attention == Work(pair_flops * (5 + 5), token_bytes * (6 + 2))
    assert step_work(shape, Layout(), [(3, 6)]).attention.flops == pair_flops * (4 + 5 + 5)
    assert step_work(shape, Layout(), [(3, 5)]) == step_work(SHAPE, Layout(), [(3, 5)])


def test_every_layout_shares_the_layers_work() -> None:
    whole = step_work(SHAPE, Layout(), [(3, 3)])
    for layout in (Layout(tp=4), Layout(pp=4), Layout(pp=2, tp=2)):
        part = step_work(SHAPE, layout, [(3, 3)])
        assert part.linear.flops * 4 == whole.linear.flops and part.attention.bytes * 4 == whole.attention.bytes


def test_a_floor_is_no_higher_than_what_the_stage_with_the_head_does() -> None:
    """Of four layers three stages have one, two and one: no device has both two layers and the head."""
    work = step_work(SHAPE, Layout(pp=3), [(1, 10)])
    assert work.linear == Work(2 * PARAMS, PARAMS * 2) and work.head == Work(2 * 64 * 211, 64 * 211 * 2)
    assert exchanges(SHAPE, Layout(pp=3, tp=2)) == {"sum": 2, "send": 1}


def test_shards_beyond_the_kv_heads_read_copies() -> None:
    eight = step_work(SHAPE, Layout(tp=8), [(1, 10)]).attention.bytes
    assert eight == step_work(SHAPE, Layout(tp=4), [(1, 10)]).attention.bytes


def test_the_floor_of_a_part_is_its_longer_time_and_parts_add_up() -> None:
    profile = HostProfile(matmul_flops_per_s=10.0, memory_bytes_per_s=4.0)
    assert Work(20, 4).floor_s(profile) == 2.0 and Work(10, 8).floor_s(profile) == 2.0
    work = step_work(SHAPE, Layout(), [(1, 1)])
    parts = [work.linear, work.attention, work.head]
    assert work.floor_s(profile) == pytest.approx(sum(part.floor_s(profile) for part in parts))


def test_decode_steps_together_are_their_sum() -> None:
    steps = [step_work(SHAPE, Layout(tp=2), [(1, context), (1, context + 7)]) for context in (10, 11)]
    assert decode_work(SHAPE, Layout(tp=2), rows=4, contexts=10 + 17 + 11 + 18, steps=2) == steps[0] + steps[1]


def test_what_a_step_exchanges() -> None:
    assert exchanges(SHAPE, Layout(tp=2)) == {"sum": 8, "send": 0}
    assert exchanges(SHAPE, Layout(pp=2, tp=2)) == {"sum": 4, "send": 1}
    assert exchanges(SHAPE, Layout()) == {"sum": 0, "send": 0}


def test_messages_between_measured_sizes_and_beyond() -> None:
    seconds = {"sum": {1024: 1.0, 3072: 2.0}, "send": {1024: 0.25}}
    profile = HostProfile(1.0, 1.0, seconds)
    sizes = (1, 1024, 2048, 3072, 6144)
    assert [profile.message_s("sum", size) for size in sizes] == [1.0, 1.0, 1.5, 2.0, 4.0]
    # An activation is 64 * 2 bytes: 8 all-reduces of 2 KiB; 4 and a send of 1 KiB.
    assert exchange_s(SHAPE, Layout(tp=2), 16, profile) == 8 * 1.5
    assert exchange_s(SHAPE, Layout(pp=2, tp=2), 8, profile) == 4 * 1.0 + 0.25
    assert exchange_s(SHAPE, Layout(tp=2), 16, HostProfile(1.0, 1.0)) == 0.0


def test_ceilings_come_from_what_limits_saves() -> None:
    saved = {"matmul_flops_per_s": 7e14, "memory_bytes_per_s": 3e12, "links": {"send": {"1024": 1e-5}}, "device": "x"}
    assert HostProfile.from_json(saved) == HostProfile(7e14, 3e12, {"send": {1024: 1e-5}})
    with pytest.raises(KeyError):
        HostProfile.from_json({"memory_bytes_per_s": 1.0})
    assert HostProfile.from_json(saved | {"compute_capability": "8.6"}).capability == (8, 6)
    nan, inf = float("nan"), float("inf")
    for wrong in ({"step_s": nan}, {"step_s": inf}, {"step_s": -1.0}, {"memory_bytes_per_s": nan}):
        with pytest.raises(ValueError, match="must"):
            HostProfile.from_json(saved | wrong)
    for link in ({"1024": nan}, {"1024": -1e-5}, {"0": 1e-5}, {}):
        with pytest.raises(ValueError, match="must"):
            HostProfile.from_json(saved | {"links": {"send": link}})


def test_a_file_that_is_no_profile_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "host.json"
    huge = '{"matmul_flops_per_s": 1' + "0" * 400 + ', "memory_bytes_per_s": 1}'
    capability = '{"matmul_flops_per_s": 1, "memory_bytes_per_s": 1, "compute_capability": "sm_86"}'
    for text in ("[" * 100_000, huge, "", "[]", "{}", capability):
        path.write_text(text)
        with pytest.raises(ConfigError, match="seesaw bench limits"):
            read_profile(path)
