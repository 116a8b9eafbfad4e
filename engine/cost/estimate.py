"""Step times of a host that is not there: counted work over its rates. For the simulated host, and for planning."""

from __future__ import annotations

import math

from seesaw.engine.cost.profile import HostProfile
from seesaw.engine.cost.times import Curve, Measured, StageTimes
from seesaw.engine.cost.work import Work, count_work, exchange_s
from seesaw.engine.model.counts import head_params, layer_params
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.parallel.layout import Layout, Plan

# How much less efficient attention's products are than those with weights.
_ATTENTION = 1.5
TOKENS = (1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def estimate(shape: ModelShape, plan: Plan, profile: HostProfile, weights: str = "reload") -> Measured:
    """What an engine with this plan would measure on such a host. `weights`: its way of changing them."""
    ranks = plan.world_size / max(layout.dp for layout in plan.layouts)  # of a replica
    return Measured(
        layouts=tuple(tuple(_stage(shape, layout, s, profile) for s in range(layout.pp)) for layout in plan.layouts),
        transition_s=weight_bytes(shape) / ranks / profile.host_to_device_bytes_per_s if weights == "reload" else 0.0,
        swap_out_bytes_per_s=ranks * profile.device_to_host_bytes_per_s,
        swap_in_bytes_per_s=ranks * profile.host_to_device_bytes_per_s,
    )


def weight_bytes(shape: ModelShape) -> int:
    ends = head_params(shape) * (1 if shape.tied else 2) * shape.dtype_bytes
    return shape.num_layers * layer_params(shape) * shape.linear_dtype_bytes + ends


def constant(plan: Plan, step_s: float, token_s: float = 0.0, transition_s: float = 0.0) -> Measured:
    """A host whose steps take `step_s`, and `token_s` more for each token through the whole model on one device."""
    return Measured(
        layouts=tuple((_line(layout, step_s, token_s),) * layout.pp for layout in plan.layouts),
        transition_s=transition_s,
    )


def _line(layout: Layout, step_s: float, token_s: float) -> StageTimes:
    counts = (1.0, 1e6)
    seconds = tuple(step_s / layout.pp + count * token_s / (layout.pp * layout.tp) for count in counts)
    return StageTimes(Curve(counts, seconds), Curve(counts, seconds), 0.0, 0.0)


def _stage(shape: ModelShape, layout: Layout, stage: int, profile: HostProfile) -> StageTimes:
    def work_s(tokens: float, sampled: float) -> float:
        work = count_work(shape, layout, tokens=tokens, pairs=0, contexts=0, sampled=sampled, steps=1, stage=stage)
        links_s = exchange_s(shape, layout, tokens, profile, stage)
        return profile.step_s + _partly_hidden_s(work.linear + work.head, profile) + links_s

    tokens = tuple(float(count) for count in TOKENS)
    one = count_work(shape, layout, tokens=0, pairs=1, contexts=1, sampled=0, steps=0, stage=stage).attention
    return StageTimes(
        prefill=Curve(tokens, tuple(work_s(count, max(1.0, count / 256)) for count in tokens)),
        decode=Curve(tokens, tuple(work_s(count, count) for count in tokens)),
        pair_s=one.flops / profile.matmul_flops_per_s * _ATTENTION,
        context_s=one.bytes / profile.memory_bytes_per_s,
    )


def _partly_hidden_s(work: Work, profile: HostProfile) -> float:
    """Arithmetic and reading overlap in part: where they are equal, a step takes 1.4 times either of the two."""
    return math.hypot(work.flops / profile.matmul_flops_per_s, work.bytes / profile.memory_bytes_per_s)
