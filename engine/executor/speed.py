"""What an operator hears of the times that were measured at the start. Called by `engine.executor.processes`."""

from __future__ import annotations

import math

from engine.cost.times import LayoutTimes, Measured, StepLoad
from engine.parallel.layout import Plan
from engine.wording import count


def speed_lines(plan: Plan, times: Measured, max_num_seqs: int) -> list[str]:
    """A line for each layout, and one for what a change between them takes."""
    lines = [
        f"{layout} measured: {_prefill(LayoutTimes(stages), layout.dp)}; {_decode(LayoutTimes(stages), max_num_seqs)}"
        for layout, stages in zip(plan.layouts, times.layouts, strict=True)
    ]
    if not plan.is_static:
        lines.append(
            f"change of layout: weights in {times.transition_s:.3g} s, KV at {_rate(times.swap_out_bytes_per_s)} to "
            f"the host and {_rate(times.swap_in_bytes_per_s)} back"
        )
    return lines


def _prefill(times: LayoutTimes, replicas: int) -> str:
    # The largest step that all stages have timed; the busiest one sets the pace.
    tokens = min(stage.prefill.counts[-1] for stage in times.stages)
    seconds = times.busiest_s(StepLoad(prefill_tokens=tokens))
    rate = replicas * tokens / seconds if seconds > 0 else math.inf
    return f"prefill {rate:,.0f} tokens/s in steps of {tokens:,.0f}"


def _decode(times: LayoutTimes, max_num_seqs: int) -> str:
    batches = sorted({1, max_num_seqs})
    return "a decoded token " + ", ".join(
        f"{1000 * times.round_s(StepLoad(decodes=batch)):.3g} ms for {count(batch, 'sequence')}" for batch in batches
    )


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.3g} GB/s"
