"""Ranks' times become a replica's: the slowest rank of each stage counts."""

from __future__ import annotations

import math

import msgspec
import pytest

from seesaw.engine.cost.rank_times import RankTimes, merge
from seesaw.engine.cost.times import Curve, Measured, StageTimes
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.wire.commands import FromRank, RankReady


def stage(seconds: float, pair_s: float = 0.0, context_s: float = 0.0) -> StageTimes:
    return StageTimes(Curve((1, 8), (seconds, 2 * seconds)), Curve((1, 4), (seconds, seconds)), pair_s, context_s)


def test_the_slowest_shard_of_each_stage_counts() -> None:
    plan = Plan(Layout(pp=2), Layout(tp=2))
    ranks = [
        RankTimes((stage(1.0), stage(3.0, pair_s=0.5)), 0.1, swap_out_block_s=2.0, swap_in_block_s=1.0),
        RankTimes((stage(2.0), stage(4.0, context_s=0.25)), 0.3, swap_out_block_s=4.0, swap_in_block_s=0.5),
    ]
    assert merge(plan, ranks, host_block_bytes=100) == Measured(
        layouts=((stage(1.0), stage(2.0)), (stage(4.0, pair_s=0.5, context_s=0.25),)),
        transition_s=0.3,
        swap_out_bytes_per_s=25.0,  # a block is there once its slowest part is
        swap_in_bytes_per_s=100.0,
    )


def test_the_slower_replica_counts_whatever_it_has_timed() -> None:
    plan = Plan(Layout(dp=2), Layout(dp=2))
    short = StageTimes(Curve((1, 2), (1.0, 2.0)), Curve((1,), (3.0,)), 0.0, 0.0)
    long = StageTimes(Curve((1, 2, 10), (2.0, 2.0, 4.0)), Curve((1, 2), (1.0, 7.0)), 0.0, 0.0)
    [[merged]] = merge(plan, [RankTimes((short,)), RankTimes((long,))], 1).layouts
    assert merged.prefill == Curve((1, 2, 10), (2.0, 2.0, 10.0))
    assert merged.decode == Curve((1, 2), (3.0, 7.0))


@pytest.mark.parametrize(("block_s", "rate"), [((0.0, 0.0), math.inf), ((0.0, 0.5), 20.0)])
def test_ranks_that_copy_nothing_set_no_rate(block_s: tuple[float, float], rate: float) -> None:
    """All of a static plan, or those whose KV heads another rank writes."""
    plan = Plan(Layout(tp=2), Layout(tp=2))
    ranks = [RankTimes((stage(1.0),), swap_out_block_s=seconds) for seconds in block_s]
    assert merge(plan, ranks, 10).swap_out_bytes_per_s == rate


def test_times_cross_the_process_boundary() -> None:
    ready = RankReady(1, "serving", times=RankTimes((stage(1.0, 0.5), stage(2.0)), 0.25, 0.125, 0.5))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ready), type=FromRank) == ready
