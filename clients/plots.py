"""The pictures of a report, as matplotlib figures. Called by `clients.report`; needs the extra `report`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from seesaw.clients.trace import Series, Span, Timeline

matplotlib.use("Agg")
# The page replaces it with its own, which is light on dark.
INK = "#222222"
matplotlib.rcParams.update(
    dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
)
matplotlib.rcParams["text.parse_math"] = False  # a label may have two dollars
matplotlib.rcParams["svg.fonttype"] = "none"  # text that can be read aloud, found and copied

MOST_SHAPES = 2000  # as shapes; more are painted as a picture, or the page takes tens of megabytes
GIB = 1 << 30
PHASE_COLORS = {"prefill": "#4C78A8", "decode": "#72B7B2", "tail": "#B279A2"}
TRANSITION_COLOR = "#E45756"
DRAIN_ALPHA = 0.45  # of the phase's colour
SWAP_COLORS = {"swap out": "#F58518", "swap in": "#54A24B"}
STEP_COLORS = {"prefill": PHASE_COLORS["prefill"], "decode": PHASE_COLORS["decode"], "mixed": "#EECA3B"}
LATENCIES = {
    "ttft": "Time to first token",
    "tpot": "Time per output token",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}
SWAP_BINS = 200


def throughput(systems: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Requests/s and tokens/s, in and out, of each system: `requests`, `input` and `output` per second."""
    panels = {"requests": "requests/s", "output": "output tokens/s", "input": "input tokens/s"}
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(systems)), layout="constrained")
    figure.suptitle(title)
    names = list(systems)
    for axes, (key, label) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        bars = axes.barh(names, [systems[name][key] for name in names], color=PHASE_COLORS["prefill"], height=0.6)
        axes.bar_label(bars, fmt=_shown, padding=3)
        axes.set_xlabel(label)
        axes.margins(x=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()  # shared: the first system on top
    return figure


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def latency_percentiles(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Median and percentiles, in milliseconds, of each load test."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    figure.suptitle("Latency by percentile")
    for axes, (metric, title) in zip(figure.subplots(2, 2).flat, LATENCIES.items(), strict=True):
        percentiles = sorted({p for result in results.values() for p in _percentiles(result, metric)})
        width = 0.8 / max(len(results), 1)
        for index, (name, result) in enumerate(results.items()):
            values = _percentiles(result, metric)
            places = np.arange(len(percentiles)) + (index - (len(results) - 1) / 2) * width
            bars = axes.bar(places, [values.get(p, np.nan) for p in percentiles], width * 0.92, label=name)
            axes.bar_label(bars, fmt=_shown, padding=2, fontsize=8)
        axes.set_xticks(range(len(percentiles)), [f"P{p:g}" for p in percentiles])
        axes.set_title(title, fontsize=10)
        axes.set_ylabel("ms")
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower left", ncols=3, frameon=False)
    return figure


def _percentiles(result: Mapping[str, Any], metric: str) -> dict[float, float]:
    """By percentile; the median is the 50th."""
    found = {50.0: result[f"median_{metric}_ms"]} if f"median_{metric}_ms" in result else {}
    for key, value in result.items():
        if match := re.fullmatch(rf"p([\d.]+)_{metric}_ms", key):
            found[float(match[1])] = value
    return {percentile: value for percentile, value in found.items() if value is not None}


def timeline(run: Timeline, title: str) -> Figure:
    """Phases, sequences, steps, swaps and pools of one run over time; transitions cross them all."""
    figure = Figure(figsize=(12, 10), layout="constrained")
    figure.suptitle(title)
    rows = figure.subplots(6, 1, sharex=True, height_ratios=(0.8, 2, 2, 2, 1.5, 1.5))
    _draw_phases(rows[0], run)
    _draw_counters(rows[1], run.counters.get("sequences", {}), "sequences")
    _draw_steps(rows[2], run.steps, "sequences", "batch size\n(sequences/step)")
    _draw_steps(rows[3], run.steps, "tokens", "tokens/step")
    rows[3].set_yscale("log")
    rows[3].set_ylim(bottom=0.7)
    _draw_swaps(rows[4], run)
    pools = {
        f"{pool} {key}": series
        for pool in ("device", "host")
        for key, series in run.counters.get(f"{pool}_blocks", {}).items()
        if key == "used" or any(series.values)  # without a prefix cache nothing is ever cached
    }
    _draw_counters(rows[5], pools, "KV blocks")
    for axes in rows:
        for change in run.transitions:
            axes.axvspan(_drained_s(change), change.end_s, color=TRANSITION_COLOR, alpha=0.25, linewidth=0)
            axes.axvline(_drained_s(change), color=TRANSITION_COLOR, linewidth=0.6, alpha=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xlabel("seconds")
    rows[-1].set_xlim(0, run.duration_s)
    return figure


def _drained_s(change: Span) -> float:
    """When the steps in flight had ended. Until then a transition does the ending phase's work."""
    return change.start_s + float(change.args.get("drain_s", 0.0))


def _draw_phases(axes: Axes, run: Timeline) -> None:
    for phase in run.phases:
        axes.barh(0, phase.duration_s, left=phase.start_s, height=1, color=PHASE_COLORS.get(phase.name, "gray"))
        if phase.duration_s > run.duration_s / 20:
            layout = phase.args.get("layout", "")
            axes.text(phase.start_s + phase.duration_s / 2, 0, layout, ha="center", va="center", color="white")
    # Each phase but the last ends with a transition.
    for phase, change in zip(run.phases, run.transitions, strict=False):
        color, drained_s = PHASE_COLORS.get(phase.name, "gray"), _drained_s(change)
        axes.barh(0, drained_s - change.start_s, left=change.start_s, height=1, color=color, alpha=DRAIN_ALPHA)
        width_s = max(change.end_s - drained_s, run.duration_s / 1000)  # so that it is seen
        axes.barh(0, width_s, left=drained_s, height=1, color=TRANSITION_COLOR)
    axes.set_yticks([])
    axes.set_ylabel("phase", rotation=0, ha="right", va="center")
    axes.set_ylim(-0.5, 0.5)
    layouts = {phase.name: phase.args.get("layout", "") for phase in run.phases}
    patches = [Patch(color=PHASE_COLORS.get(name, "gray"), label=f"{name} {layouts[name]}") for name in layouts]
    drain_s = sum(_drained_s(change) - change.start_s for change in run.transitions)
    rest_s = sum(change.end_s - _drained_s(change) for change in run.transitions)
    patches.append(Patch(color="gray", alpha=DRAIN_ALPHA, label=f"paler: drain ({drain_s:.3g} s)"))
    patches.append(Patch(color=TRANSITION_COLOR, label=f"rest of transitions ({len(run.transitions)}: {rest_s:.3g} s)"))
    _legend(axes, patches)


def _draw_counters(axes: Axes, counters: Mapping[str, Series], label: str) -> None:
    for name, series in counters.items():
        (line,) = axes.step(series.times_s, series.values, where="post", label=name, linewidth=1.2)
        line.set_rasterized(len(series.values) > MOST_SHAPES)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    if counters:
        _legend(axes)


def _draw_steps(axes: Axes, steps: Sequence[Span], key: str, label: str) -> None:
    """A bar as long as each step, at the height of its quantity."""
    for name, color in STEP_COLORS.items():
        chosen = [step for step in steps if step.name == name and key in step.args]
        if chosen:
            starts_s, ends_s = [step.start_s for step in chosen], [step.end_s for step in chosen]
            lines = axes.hlines([step.args[key] for step in chosen], starts_s, ends_s, color, label=f"{name} steps")
            lines.set(linewidth=2.5, capstyle="projecting")  # so that also a short step is seen
            lines.set_rasterized(len(chosen) > MOST_SHAPES)
    axes.set_ylabel(label)
    axes.margins(y=0.1)
    axes.set_ylim(bottom=0)
    if steps:
        _legend(axes)


def _draw_swaps(axes: Axes, run: Timeline) -> None:
    """Bandwidth: each swap's bytes spread over its duration, in bins of the run's length."""
    edges_s = np.linspace(0, max(run.duration_s, 1e-9), SWAP_BINS + 1)
    width_s = edges_s[1] - edges_s[0]
    for name, color in SWAP_COLORS.items():
        moved_bytes = np.zeros(SWAP_BINS)
        for swap in (swap for swap in run.swaps if swap.name == name):
            overlap_s = np.minimum(edges_s[1:], swap.end_s) - np.maximum(edges_s[:-1], swap.start_s)
            share = np.clip(overlap_s, 0, None) / swap.duration_s if swap.duration_s else 0.0
            moved_bytes += swap.args["bytes"] * share
        total = sum(swap.args["bytes"] for swap in run.swaps if swap.name == name)
        axes.stairs(
            moved_bytes / width_s / GIB,
            edges_s,
            fill=True,
            color=color,
            alpha=0.7,
            label=f"{name}, {total / GIB:.3g} GiB",
        )
    axes.set_ylabel("swaps\n(GiB/s)")
    axes.set_ylim(bottom=0)
    _legend(axes)


def _legend(axes: Axes, handles: Sequence[Patch] | None = None) -> None:
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False, "fontsize": 8}
    axes.legend(handles=handles, **place) if handles else axes.legend(**place)
