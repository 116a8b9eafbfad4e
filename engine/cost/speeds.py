"""A layout's times in the few numbers that are told: the log at the start, `/metrics`, the trace."""

from __future__ import annotations

from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.cost.times import LayoutTimes, StepLoad
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.wire.messages import LayoutSpeed, Speeds


def speeds(plan: Plan, times: EngineTimes, max_num_seqs: int) -> Speeds:
    """As they are now."""
    layouts = {str(layout): layout_speed(layout, times.of(layout), max_num_seqs) for layout in plan.layouts}
    return Speeds(layouts, times.transition_s)


def layout_speed(layout: Layout, times: LayoutTimes, max_num_seqs: int) -> LayoutSpeed:
    seconds = times.busiest_s(StepLoad(prefill_tokens=prefill_step_tokens(times)))
    rate = layout.dp * prefill_step_tokens(times) / seconds if seconds > 0 else 0.0
    batches = sorted({1, max_num_seqs})
    return LayoutSpeed(rate, {batch: times.round_s(StepLoad(decodes=batch)) for batch in batches})


def prefill_step_tokens(times: LayoutTimes) -> float:
    """The largest step that all stages have timed; the busiest one sets the pace."""
    return min(stage.prefill.counts[-1] for stage in times.stages)
