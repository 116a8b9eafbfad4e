"""What an offline benchmark prints: each system in detail, and all of them side by side. Called by `server.bench`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from seesaw.engine.bench.offline import SystemResult

LEAST_SHARE = 5e-4  # of idle time, to be named
SIMULATED = "simulated: nothing was measured but the schedule"


def describe(result: SystemResult, workload: str = "") -> str:
    """One system's figures, a line each."""
    f, stats = result.figures, result.stats
    tail = f"95 % done after {f.t95_s:.2f} s, at {f.requests_per_second_without_tail:.3f} /s; "
    tail += f"the last 5 % took {f.tail_s:.2f} s"
    lines = [("device", SIMULATED)] * (result.info.device == "simulated")
    lines += [
        ("requests", f"{len(result.requests)} in {f.total_s:.2f} s: {f.requests_per_second:.3f} /s"),
        ("tokens", f"{f.input_tokens_per_second:.1f} /s in, {f.output_tokens_per_second:.1f} /s out"),
        ("tail", tail),
    ]
    lines += _distances(result)
    for phase, seconds in stats.phase_seconds.items():
        tokens = result.phase_tokens[phase]
        text = f"{seconds:.2f} s; {tokens['prompt']} prompt and {tokens['generation']} generated tokens"
        lines.append((f"{phase} phase", text))
    if result.never_used_prefill:
        lines.append(("layouts", result.never_used_prefill))
    count = sum(stats.transitions.values())
    if count:
        parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in stats.transition_seconds.items())
        changes = ", ".join(f"{n} x {change}" for change, n in stats.transitions.items())
        lines.append(("transitions", f"{changes}; {parts} (part of the phases; a drain is their last steps)"))
        moved = ", ".join(f"{direction} {num_bytes / 1e9:.3f} GB" for direction, num_bytes in stats.swap_bytes.items())
        lines.append(("swaps", moved or "none"))
    lines.append(("idle", _idle(result)))
    steps = ", ".join(f"{n} {kind}" for kind, n in stats.steps.items())
    lines.append(("steps", f"{steps}; {result.mean_decode_batch:.1f} sequences in one that decodes"))
    lines.append(
        ("pools", f"{result.info.device_blocks} device blocks a replica, {result.info.host_blocks} host blocks")
    )
    if stats.prefix_cache_queries:
        text = f"{result.prefix_hit_rate:.1%} of {stats.prefix_cache_queries} prompt tokens were found"
        tiers = ", ".join(f"{tier} {tokens}" for tier, tokens in stats.prefix_cache_hits.items() if tokens)
        lines.append(("prefix cache", text + (f": {tiers}" if tiers else "")))
    if stats.preemptions:
        lines.append(("preemptions", str(stats.preemptions)))
    width = max(len(name) for name, _ in lines)
    return "\n".join([f"{result.name}  {workload}".rstrip(), *(f"  {name:<{width}}  {text}" for name, text in lines)])


def _distances(result: SystemResult) -> Iterable[tuple[str, str]]:
    """How far from its floors the run was."""
    decode, floors = result.full_decode, result.floors
    if decode is not None:
        text = f"{decode.step_s * 1e3:.2f} ms for a token of all {decode.sequences} requests, "
        text += f"at {decode.mean_context_tokens:.0f} tokens of context"
        if floors is not None and floors.full_decode_s:
            text += f"; floor {floors.full_decode_s * 1e3:.2f} ms: {decode.step_s / floors.full_decode_s:.2f} x"
        yield "decode step", text
    if floors is not None:
        bound, total_s = floors.bound, result.figures.total_s
        text = f"{bound.total_s:.2f} s, {bound.requests_per_second:.3f} /s: {total_s / bound.total_s:.2f} x; "
        text += f"work {bound.work_s:.2f} s and links {bound.links_s:.2f} s, longest output {bound.longest_s:.2f} s"
        yield "bound", text


def _idle(result: SystemResult) -> str:
    """Which share of the run nothing was computed, and why; the largest first."""
    total_s, idle_s = result.figures.total_s, result.stats.idle_seconds
    if not total_s or not idle_s:
        return "never"
    shares = sorted(((seconds / total_s, cause) for cause, seconds in idle_s.items()), reverse=True)
    parts = ", ".join(f"{cause} {share:.1%}" for share, cause in shares if share >= LEAST_SHARE)
    return f"{sum(idle_s.values()) / total_s:.1%} of the run" + (f": {parts}" if parts else "")


def compare(results: Sequence[SystemResult], workload: str = "") -> str:
    """A row for each system. The last two columns say how many times the first system's rate is this one's.

    Below them stands what keeps the ratios from being a verdict on the layouts.
    """
    first = results[0].figures
    head = [workload or "system", "devices", "total s", "req/s", "in tok/s", "out tok/s", "95 % by s", "req/s w/o tail"]
    head += [f"{results[0].name} is", "w/o tail"]
    rows = [head]
    for result in results:
        f = result.figures
        cells = [f.total_s, f.requests_per_second, f.input_tokens_per_second, f.output_tokens_per_second, f.t95_s]
        cells.append(f.requests_per_second_without_tail)
        ratios = [
            first.requests_per_second / f.requests_per_second,
            first.requests_per_second_without_tail / f.requests_per_second_without_tail,
        ]
        rows.append([result.name, str(result.devices), *map(_number, cells), *(f"{ratio:.3f} x" for ratio in ratios)])
    notes = [SIMULATED] * (results[0].info.device == "simulated")
    notes += [f"{result.name}: {result.never_used_prefill}" for result in results if result.never_used_prefill]
    return "\n".join([*aligned(rows), *notes])


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for name, *cells in rows:
        yield "  ".join([name.ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells, widths[1:], strict=True))])
