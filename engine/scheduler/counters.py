"""What the scheduler has done since start: the numbers behind `Stats`."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from seesaw.engine.cost.times import StepLoad
from seesaw.engine.wire.messages import Stats


class Counters:
    """Totals since start. Nothing that stalls a sequence is left out: each transition's parts and all swaps count."""

    def __init__(self, now: float) -> None:
        self.prompt_tokens: Counter[str] = Counter()  # by phase, as are the generated ones
        self.generation_tokens: Counter[str] = Counter()
        self.preemptions = 0
        self.finished = 0  # sequences that came to their end
        self.prefilled_tokens = 0  # in steps that were sent
        self._transitions: Counter[str] = Counter()
        self._transition_seconds: defaultdict[str, float] = defaultdict(float)
        self._swap_bytes: Counter[str] = Counter()
        self._swap_seconds: defaultdict[str, float] = defaultdict(float)
        self._phase_seconds: defaultdict[str, float] = defaultdict(float)
        self._steps: Counter[str] = Counter()
        self._decodes = 0
        self._looked_up_tokens = 0
        self._hit_tokens: Counter[str] = Counter()
        self._entered_s = now

    def left(self, phase: str, now: float) -> None:
        """A phase is over and the next begins."""
        self._phase_seconds[phase] += now - self._entered_s
        self._entered_s = now

    def changed(self, change: str, **seconds: float) -> None:
        """A transition, written as `P4->T4`, completed; its parts took so many seconds."""
        self._transitions[change] += 1
        for part, duration in seconds.items():
            self._transition_seconds[part] += duration

    def swapped(self, to_host: bool, num_bytes: int, seconds: float) -> None:
        direction = "out" if to_host else "in"
        self._swap_bytes[direction] += num_bytes
        self._swap_seconds[direction] += seconds

    def looked_up(self, prompt_tokens: int, **found: int) -> None:
        """A prompt started, of which so many tokens were found, by tier."""
        self._looked_up_tokens += prompt_tokens
        self._hit_tokens.update(found)

    def stepped(self, kind: str, load: StepLoad) -> None:
        """A step was sent that holds so much."""
        self._steps[kind] += 1
        self._decodes += int(load.decodes)
        self.prefilled_tokens += int(load.prefill_tokens)

    def snapshot(self, phase: str, now: float, **gauges: Any) -> Stats:
        """All totals, with the current phase's time up to now, and the given gauges of `Stats`."""
        phase_seconds = dict(self._phase_seconds)
        phase_seconds[phase] = phase_seconds.get(phase, 0.0) + now - self._entered_s
        return Stats(
            phase=phase,
            prompt_tokens=self.prompt_tokens.total(),
            generation_tokens=self.generation_tokens.total(),
            phase_prompt_tokens=dict(self.prompt_tokens),
            phase_generation_tokens=dict(self.generation_tokens),
            preemptions=self.preemptions,
            transitions=dict(self._transitions),
            transition_seconds=dict(self._transition_seconds),
            swap_bytes=dict(self._swap_bytes),
            swap_seconds=dict(self._swap_seconds),
            phase_seconds=phase_seconds,
            steps=dict(self._steps),
            decodes=self._decodes,
            prefix_cache_queries=self._looked_up_tokens,
            prefix_cache_hits=dict(self._hit_tokens),
            **gauges,
        )
