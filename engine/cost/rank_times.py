"""What each rank timed while the engine started, and what it comes to for a replica. No torch.

A rank knows its own stage in each layout. The executor merges all ranks' times into the engine's `Measured`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from seesaw.engine.cost.times import Curve, Measured, StageTimes
from seesaw.engine.parallel.layout import Layout, Plan


class RankTimes(msgspec.Struct, frozen=True, array_like=True):
    """One rank's. A swap's seconds are of the rank's part of a block: 0 if it copies none, or there is no host pool."""

    stages: tuple[StageTimes, ...]  # its stage in each layout of the plan
    transition_s: float = 0.0  # of changing its weights, to the layout that takes longest
    swap_out_block_s: float = 0.0
    swap_in_block_s: float = 0.0


def merge(plan: Plan, ranks: Sequence[RankTimes], host_block_bytes: int) -> Measured:
    """The times of a replica, whose slowest ranks count; `ranks` by rank.

    A block is swapped once all ranks of a replica have copied their parts, so the slowest of them sets the rate.
    """
    return Measured(
        layouts=tuple(
            tuple(_slowest([ranks[rank].stages[index] for rank in _at(layout, stage)]) for stage in range(layout.pp))
            for index, layout in enumerate(plan.layouts)
        ),
        transition_s=max(times.transition_s for times in ranks),
        swap_out_bytes_per_s=_rate(host_block_bytes, [times.swap_out_block_s for times in ranks]),
        swap_in_bytes_per_s=_rate(host_block_bytes, [times.swap_in_block_s for times in ranks]),
    )


def _at(layout: Layout, stage: int) -> Iterable[int]:
    """The ranks of a stage in all replicas."""
    return (rank for rank, coord in layout.coords() if coord.stage == stage)


def _slowest(times: Sequence[StageTimes]) -> StageTimes:
    return StageTimes(
        prefill=_highest([each.prefill for each in times]),
        decode=_highest([each.decode for each in times]),
        pair_s=max(each.pair_s for each in times),
        context_s=max(each.context_s for each in times),
    )


def _highest(curves: Sequence[Curve]) -> Curve:
    """Replicas may have stopped at different counts: each curve goes on as it would be read."""
    counts = tuple(sorted({count for curve in curves for count in curve.counts}))
    return Curve(counts, tuple(max(curve.at(count) for curve in curves) for count in counts))


def _rate(block_bytes: int, block_s: Sequence[float]) -> float:
    slowest_s = max(block_s)
    return block_bytes / slowest_s if slowest_s > 0 else math.inf
