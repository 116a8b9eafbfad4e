"""How long a layout's steps take: curves that were measured while it rehearsed, corrected by every real step.

Executors measure or estimate `Measured`; the scheduler owns the `LayoutTimes` made of it and corrects them. Policies,
micro-batching, the simulated host and benchmarks ask. No torch, and no device's constant.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from seesaw.engine.model.shapes import NO_WINDOW

# A step's weight in the running correction: some fifty steps forget an old one.
_CORRECTION = 0.04
_NEARLY = 0.02  # as soon
_LEAST_FACTOR, _MOST_FACTOR = 0.1, 10.0


def pairs_of(start: float, tokens: float, span: int = NO_WINDOW) -> float:
    """Of a query and a position that it attends to, in a prompt's `tokens` from position `start` on.

    `span` is the model's `attention_span`.
    """
    whole = min(tokens, max(0, span - start))  # those that attend to all before them
    return whole * (start + whole / 2) + (tokens - whole) * span


class StepLoad(NamedTuple):
    """What one forward step holds, in one replica."""

    prefill_tokens: float = 0.0
    pairs: float = 0.0  # of a prompt's token and a position that it attends to (`pairs_of`)
    decodes: float = 0.0  # sequences that decode one token
    context: float = 0.0  # tokens of theirs whose K and V are read

    @classmethod
    def chunk(cls, start: float, tokens: float, span: int = NO_WINDOW) -> StepLoad:
        """Of a prompt's `tokens` from position `start` on."""
        return cls(tokens, pairs_of(start, tokens, span))

    def __add__(self, other: StepLoad) -> StepLoad:  # type: ignore[override]
        return StepLoad(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, factor: float) -> StepLoad:
        return StepLoad(*(a * factor for a in self))


class Curve(msgspec.Struct, frozen=True, array_like=True):
    """Seconds by a count: straight between the measured points, level before the first, and as steep beyond the last
    as between the last two (in proportion, if there is but one)."""

    counts: tuple[float, ...]  # ascending
    seconds: tuple[float, ...]

    def at(self, count: float) -> float:
        counts, seconds = self.counts, self.seconds
        if count <= counts[0]:
            return seconds[0]
        if len(counts) == 1:
            return seconds[0] * count / counts[0]
        right = min(bisect_left(counts, count), len(counts) - 1)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (counts[right] - counts[left])
        return seconds[left] + slope * (count - counts[left])

    @property
    def steepness(self) -> float:
        """Seconds that one more costs at the far end."""
        if len(self.counts) == 1:
            return self.seconds[0] / self.counts[0]
        return (self.seconds[-1] - self.seconds[-2]) / (self.counts[-1] - self.counts[-2])


class StageTimes(msgspec.Struct, frozen=True, array_like=True):
    """Seconds that steps keep one stage of a layout busy, its slowest shard counted."""

    prefill: Curve  # by tokens of short prompts in a step
    decode: Curve  # by sequences that decode, with little context
    pair_s: float  # of a prompt's token and one position that it attends to
    context_s: float  # of a token of context whose K and V a decoding sequence reads

    def step_s(self, load: StepLoad) -> float:
        """Of a step that decodes, prefills, or does both: then its rows go through the same products."""
        tokens, pairs, decodes, context = load
        base_s = self.prefill.at(tokens + decodes) if tokens else self.decode.at(decodes)
        return base_s + self.pair_s * pairs + self.context_s * context


class Measured(msgspec.Struct, frozen=True):
    """All that was timed while an engine started: the seed of its times."""

    layouts: tuple[tuple[StageTimes, ...], ...]  # by layout of the plan, then by stage
    transition_s: float = 0.0  # of changing the weights from one layout to another
    swap_out_bytes_per_s: float = math.inf  # of all ranks of a replica together
    swap_in_bytes_per_s: float = math.inf


class LayoutTimes:
    """One layout's times. Owned by the scheduler, which corrects them; pure while nobody calls `observe`."""

    def __init__(self, stages: Sequence[StageTimes]) -> None:
        self.stages = tuple(stages)
        self._distinct = tuple(dict.fromkeys(self.stages))
        self._prefill_factor = self._decode_factor = 1.0  # measured over predicted, of late

    @property
    def pp(self) -> int:
        return len(self.stages)

    def busiest_s(self, load: StepLoad) -> float:
        """Seconds of the stage that all others wait for: steps follow one another at this pace."""
        return self._factor(load) * max(stage.step_s(load) for stage in self._distinct)

    def passing_s(self, load: StepLoad) -> float:
        """Seconds of a step's way through all stages."""
        return self._factor(load) * sum(stage.step_s(load) for stage in self.stages)

    def observe(self, load: StepLoad, seconds: float) -> None:
        """A real step kept the slowest rank busy for so long."""
        predicted_s = max(stage.step_s(load) for stage in self._distinct)
        if not (predicted_s > 0 and seconds > 0):
            return
        ratio = min(max(seconds / predicted_s, _LEAST_FACTOR), _MOST_FACTOR)
        if load.prefill_tokens:
            self._prefill_factor += _CORRECTION * (ratio - self._prefill_factor)
        else:
            self._decode_factor += _CORRECTION * (ratio - self._decode_factor)

    def _factor(self, load: StepLoad) -> float:
        return self._prefill_factor if load.prefill_tokens else self._decode_factor

    def prefill_s(self, prompts: StepLoad, step_tokens: float) -> float:
        """Seconds to prefill so much in steps of `step_tokens`, filling and draining the pipeline included."""
        if not prompts.prefill_tokens:
            return 0.0
        steps = max(1.0, prompts.prefill_tokens / step_tokens)
        return (steps + self.pp - 1) * self.busiest_s(prompts.times(1 / steps))

    def best_step_tokens(self, tokens: float, least: int, most: int) -> int:
        """In steps of how many tokens so many are prefilled soonest, between `least` and `most`: smaller ones fill and
        drain a pipeline sooner, larger ones are more efficient. Real steps cost more than a stage alone shows (copies,
        messages, launches), so of those that are nearly as soon the largest is taken."""
        if self.pp == 1 or least >= most:
            return most
        halvings = range(int(2 * math.log2(most / least)) + 1)
        sizes = [int(most / 2 ** (halving / 2)) for halving in halvings]
        prompts = StepLoad(prefill_tokens=max(1.0, tokens))
        seconds = [self.prefill_s(prompts, size) for size in sizes]
        soon_s = min(seconds) * (1 + _NEARLY)
        return next(size for size, takes_s in zip(sizes, seconds, strict=True) if takes_s <= soon_s)

    def round_s(self, load: StepLoad) -> float:
        """Seconds of a token for each decoding sequence, prompts beside them, in the best number of micro-batches."""
        return min(self._cycle_s(load, steps) for steps in range(1, self.pp + 1))

    def micro_batches(self, decodes: float, context: float) -> int:
        """In how many steps the running sequences decode soonest.

        With one for each stage the last stage, which has the head, is always busy, and all wait for it. With one fewer
        a token takes no longer than its way through the stages, but larger steps, which costs more where rows do not
        hide behind reading the weights.
        """
        load = StepLoad(decodes=decodes, context=context)
        return min(range(self.pp, 0, -1), key=lambda steps: self._cycle_s(load, steps))

    def _cycle_s(self, load: StepLoad, steps: int) -> float:
        part = load.times(1 / steps)
        return max(steps * self.busiest_s(part), self.passing_s(part))
