"""Bounds of workloads, against figures worked out by hand for Llama-3-70B on four H100s."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from seesaw.engine.bench.bounds import Host, bound, decode_floor_s, run_floors
from seesaw.engine.bench.figures import FullDecode
from seesaw.engine.bench.workload import Job, Prefix
from seesaw.engine.cost.profile import HostProfile, read_profile
from seesaw.engine.cost.work import step_work
from seesaw.engine.model.config_json import read_shape
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
SHAPE = read_shape(REPOSITORY / "configs" / "models" / "llama3-70b")
BURST = 794e12  # FLOP/s
HOST = Host(SHAPE, HostProfile(BURST, 3.0e12), max_num_seqs=1024, max_num_batched_tokens=8192)
P4, T4 = Layout(pp=4), Layout(tp=4)


def static(layout: Layout) -> Plan:
    return Plan(layout, layout)


def test_prefill_in_four_stages() -> None:
    """2 x 68.5e9 weights and 2.7e9 of attention are 139.6 GFLOP a token, of which each device does a quarter."""
    limit = bound(HOST, static(P4), [Job(2048, 1)] * 96)
    assert 96 * 2048 / limit.total_s == pytest.approx(22_750, rel=2e-3)
    assert limit.work_s > limit.longest_s and limit.links_s == 0.0


def test_a_prefix_is_computed_once() -> None:
    def work_s(*jobs: Job) -> float:
        return bound(HOST, static(P4), jobs).work_s

    begun = [Job(2048, 1, prefix=Prefix(0, 2000))] * 96
    assert work_s(*begun[:1]) == work_s(Job(2048, 1))
    # 48 tokens of each but the first, and their attention to 2,000 more than that.
    assert work_s(Job(2048, 1), *[Job(48, 1)] * 95) < work_s(*begun) < work_s(Job(2048, 1), *[Job(53, 1)] * 95)
    assert work_s(*begun, Job(2048, 1, prefix=Prefix(1, 2000))) > work_s(*begun, Job(2000, 1))


def test_an_output_alone_in_four_stages_reads_all_weights_for_each_token() -> None:
    """138.9 GB at 3.0 TB/s are 46.3 ms, and its KV 0.1 ms; four shards read a quarter each."""
    jobs = [Job(20, 1052), Job(20, 10)]
    in_stages, in_shards = (bound(HOST, static(layout), jobs) for layout in (P4, T4))
    assert in_stages.longest_s / 1052 == pytest.approx(46.4e-3, rel=2e-3)
    assert in_shards.longest_s == pytest.approx(in_stages.longest_s / 4, rel=2e-3)
    assert in_stages.total_s == in_stages.longest_s and in_stages.requests_per_second == 2 / in_stages.longest_s


def test_decodes_of_one_length_are_steps_of_all() -> None:
    """Of 512 sequences: arithmetic takes longer than reading the weights once, but not than four times."""
    jobs = [Job(32, 2)] * 512
    without_prompts = bound(HOST, static(T4), jobs).work_s - bound(HOST, static(T4), [Job(32, 1)] * 512).work_s
    step = step_work(SHAPE, T4, [(1, 33)] * 512)
    assert step.linear.floor_s(HOST.profile) == 512 * 2 * 80 * 855_638_016 / 4 / BURST
    assert without_prompts == pytest.approx(step.floor_s(HOST.profile), rel=0.02)
    assert decode_floor_s(HOST, T4, 512, 33) == pytest.approx(step.floor_s(HOST.profile))
    assert decode_floor_s(HOST, P4, 512, 33) > 4 * 34.2e9 / 3.0e12


def test_a_sliding_window_bounds_what_attention_costs() -> None:
    """By hand for a window of 128: prompts of 1,024 tokens, and 64 outputs behind them; alone, and all at once."""
    host = replace(HOST, shape=replace(SHAPE, sliding_window=128), profile=HostProfile(1e30, 1.0))  # only bytes count
    token_bytes = 80 * 2 * 2 * 128 * 2  # of K and V, in each of four shards: two KV heads
    jobs = [Job(1024, 65)] * 64
    whole, part = (bound(each, static(T4), jobs).work_s for each in (replace(host, shape=SHAPE), host))
    decoded = sum(1024 + step for step in range(1, 65))
    assert whole - part == pytest.approx(64 * (decoded - 64 * 128) * token_bytes)
    floors = [decode_floor_s(each, T4, 8, 1024) for each in (replace(host, shape=SHAPE), host)]
    assert floors[0] - floors[1] == pytest.approx(8 * (1024 - 128) * token_bytes)
    flops = replace(host, profile=HostProfile(1.0, 1e30))
    whole, part = (bound(each, static(T4), [Job(1024, 1)]).work_s for each in (replace(flops, shape=SHAPE), flops))
    unseen = sum(range(1, 1024 - 128 + 1))  # pairs
    assert whole - part == pytest.approx(4 * 80 * 16 * 128 * unseen)


def test_small_batches_read_the_weights_more_often() -> None:
    jobs = [Job(32, 101)] * 64
    large, small = (bound(replace(HOST, max_num_seqs=n), static(T4), jobs).work_s for n in (64, 16))
    weights_s = 80 * 855_638_016 * 2 / 4 / 3.0e12
    head_s = 8192 * 128_256 * 2 / 4 / 3.0e12
    assert small - large > 300 * weights_s * 0.7  # 400 steps for 100; what prompts hide of the first hundred is little
    assert small == pytest.approx(400 * (weights_s + head_s), rel=0.05)


def test_replicas_share_the_requests() -> None:
    jobs = [Job(32, 101)] * 64
    one, two = bound(HOST, static(T4), jobs), bound(HOST, static(Layout(dp=2, tp=4)), jobs * 2)
    assert two.work_s == pytest.approx(one.work_s) and two.longest_s == one.longest_s
    assert two.requests_per_second == pytest.approx(2 * one.requests_per_second)


def test_a_plan_does_prompts_in_one_layout_and_outputs_in_the_other() -> None:
    jobs = [Job(2048, 65)] * 64
    both = bound(HOST, Plan(P4, T4), jobs)
    prompts = bound(HOST, static(P4), [Job(2048, 1)] * 64)
    assert both.work_s > prompts.work_s
    assert both.longest_s == bound(HOST, static(T4), jobs).longest_s  # the faster of its layouts
    assert both.work_s > bound(HOST, static(T4), jobs).work_s  # which hides reading the weights behind prompts


def test_a_pipeline_decodes_in_as_many_micro_batches_as_is_soonest() -> None:
    """By bytes, of 8B in four stages: 1.745e9 weights a stage, and 0.525e9 of the head."""
    shape = read_shape(REPOSITORY / "configs" / "models" / "llama3-8b")
    host = replace(HOST, shape=shape, profile=HostProfile(1e30, 1.0))
    stage, head, kv = 8 * 218_103_808 * 2, 4096 * 128_256 * 2, 8 * 8 * 2 * 128 * 2
    # Three keep the last stage less busy than it takes one of them to come through all.
    few = 4 * stage + head + 4 * kv * 10 * 101
    assert 3 * (stage + head) < few < 4 * (stage + head)
    assert decode_floor_s(host, P4, 30, 100) == pytest.approx(few)
    # Four read their context at once.
    much = 4 * (stage + head) + 120 * kv * 100_001
    assert 4 * kv * 40 * 100_001 > 120 * kv * 100_001
    assert decode_floor_s(host, P4, 120, 100_000) == pytest.approx(much)
    # One sequence is one micro-batch: its floor is that of its output alone.
    alone = bound(host, static(P4), [Job(4000, 2)])
    assert decode_floor_s(host, P4, 1, 4001) == alone.longest_s / 2


def test_a_tail_layout_changes_nothing_about_how_prompts_and_outputs_mix() -> None:
    jobs = [Job(2048, 65)] * 64
    assert bound(HOST, Plan(T4, T4, P4), jobs).work_s == bound(HOST, static(T4), jobs).work_s


def test_exchanges() -> None:
    """An all-reduce of one token's 16 KiB takes 20 us, and each layer has two; a send takes 10 us."""
    links = {"sum": {16384: 20e-6, 16384 * 1024: 100e-6}, "send": {16384: 10e-6, 16384 * 1024: 200e-6}}
    host = replace(HOST, profile=replace(HOST.profile, link_s=links), max_num_batched_tokens=1024)
    alone = [Job(1, 100)]
    for layout, token_s in ((T4, 160 * 20e-6), (P4, 3 * 10e-6)):
        added = bound(host, static(layout), alone).longest_s - bound(HOST, static(layout), alone).longest_s
        assert added == pytest.approx(100 * token_s)
    prompts = [Job(512, 1)] * 8  # four full steps
    assert bound(host, static(T4), prompts).links_s == pytest.approx(4 * 160 * 100e-6)
    assert bound(host, static(P4), prompts).links_s == pytest.approx(4 * 200e-6)
    # One token's way through the stages has three sends; a stage sends each of four micro-batches of 1024.
    for sequences, links_s in ((1, 3 * 10e-6), (4096, 4 * 200e-6)):
        added = decode_floor_s(host, P4, sequences, 100) - decode_floor_s(HOST, P4, sequences, 100)
        assert added == pytest.approx(links_s)


def test_what_a_run_is_held_against() -> None:
    jobs = [Job(32, 256)] * 8
    assert run_floors(HOST, Plan(P4, T4), jobs, None).full_decode_s is None
    held = run_floors(HOST, Plan(P4, T4), jobs, FullDecode(8, 0.02, 100.0))
    assert held.full_decode_s == decode_floor_s(HOST, T4, 8, 100.0)
    assert held.to_json()["bound"]["requests_per_second"] == 8 / held.bound.total_s
    # So few may have decoded in the tail layout.
    assert run_floors(HOST, Plan(P4, P4, T4), jobs, FullDecode(8, 0.02, 100.0)).full_decode_s == held.full_decode_s


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"matmul_flops_per_s": 1}',
        '{"matmul_flops_per_s": 0, "memory_bytes_per_s": 1}',
        '{"matmul_flops_per_s": 1, "memory_bytes_per_s": NaN}',
        '{"matmul_flops_per_s": 1, "memory_bytes_per_s": 1, "links": {"sum": {}}}',
        '{"matmul_flops_per_s": 1, "memory_bytes_per_s": 1, "links": {"sum": {"0": 1e-5}}}',
    ],
)
def test_a_file_of_something_else(tmp_path: Path, content: str) -> None:
    path = tmp_path / "limits.json"
    with pytest.raises(ConfigError, match="cannot read"):
        read_profile(path)
    path.write_text(content)
    with pytest.raises(ConfigError, match="`seesaw bench limits --output-json`"):
        read_profile(path)
