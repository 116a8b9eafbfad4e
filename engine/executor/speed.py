"""What an operator hears of the times that were measured at the start. Called by `engine.executor.processes`."""

from __future__ import annotations

import math

from seesaw.engine.cost.speeds import layout_speed, prefill_step_tokens
from seesaw.engine.cost.times import LayoutTimes, Measured
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.values.wording import count


def speed_lines(plan: Plan, times: Measured, max_num_seqs: int) -> list[str]:
    """A line for each layout, and one for what a change between them takes."""
    lines = [
        _line(layout, LayoutTimes(stages), max_num_seqs)
        for layout, stages in zip(plan.layouts, times.layouts, strict=True)
    ]
    if not plan.is_static:
        lines.append(
            f"change of layout: weights in {_ms(times.transition_s)}, KV at {_rate(times.swap_out_bytes_per_s)} to "
            f"the host and {_rate(times.swap_in_bytes_per_s)} back"
        )
    return lines


def _line(layout: Layout, times: LayoutTimes, max_num_seqs: int) -> str:
    speed = layout_speed(layout, times, max_num_seqs)
    decode = ", ".join(f"{_ms(s)} for {count(n, 'sequence')}" for n, s in speed.decode_seconds.items())
    return (
        f"{layout} measured: prefill {speed.prefill_tokens_per_second or math.inf:,.0f} tokens/s in steps of "
        f"{prefill_step_tokens(times):,.0f}; a decoded token {decode}"
    )


def _rate(bytes_per_s: float) -> str:
    return f"{_number(bytes_per_s / 1e9)} GB/s"


def _ms(seconds: float) -> str:
    return f"{_number(1000 * seconds)} ms"


def _number(value: float) -> str:
    """Three digits, and all of a larger number's: 0.00588, 4,970."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"
