"""How long what is known would take, one way or another: arithmetic over measured times. Used by `CostPolicy`.

All ways are judged by the same simple picture, so what it leaves out (the last few sequences, how full a step happens
to be) it leaves out of all of them. Sums are over all replicas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from engine.cost.balance import MIN_CHUNK_TOKENS, StepCost
from engine.cost.engine_times import EngineTimes
from engine.cost.times import StepLoad
from engine.parallel.layout import Layout
from engine.planning.policy import Mode, Situation

_FEW = 64  # sequences that may be looked at one by one
_MEAN_OF_A_HALF = 0.5 / math.log(2)  # of a number that falls to its half at a constant rate, over what it was


@dataclass(frozen=True)
class Limits:
    """What bounds a replica's steps, and by layout the costs by which a pipeline's are made alike."""

    max_num_seqs: int
    max_num_batched_tokens: int
    costs: Mapping[Layout, StepCost]


class Outlook:
    """One moment's backlog: prompts that wait, sequences that decode or will, and the outputs still expected."""

    def __init__(self, situation: Situation, times: EngineTimes, limits: Limits) -> None:
        self._times = times
        self._limits = limits
        self._expected = expected = situation.expected_output_tokens
        self.prompts = situation.waiting
        self.prompt_tokens = situation.waiting_tokens
        self._mean_prompt = self.prompt_tokens / self.prompts if self.prompts else 0.0
        self._decoding = situation.running + situation.hosted + situation.prefilling
        few = situation.running <= _FEW
        self._outputs = self._decoding * min(expected, situation.mean_left_tokens() if few else expected)
        self._resident_context = situation.context_tokens()
        self._device_tokens = situation.device_tokens
        self._kv_bytes = situation.kv_bytes(self._resident_context)
        if situation.running:
            self._context = self._resident_context / situation.running
        else:
            self._context = self._mean_prompt + expected / 2

    def decode_s(self, layout: Layout) -> float:
        """Seconds until all that decode have ended. Ends come at random: every half of those left takes
        as many rounds as the one before."""
        batch = min(self._batch(layout), self._decoding)
        if not batch:
            return 0.0
        rounds_per_half = self._outputs / batch * math.log(2)
        seconds = 0.0
        while batch >= 1:
            seconds += rounds_per_half * self.round_s(layout, batch * _MEAN_OF_A_HALF, 0.0)
            batch /= 2
        return seconds

    def _bulk_s(self, layout: Layout, prompt_tokens: float, sequences: float) -> tuple[float, float]:
        """Seconds to prefill so many tokens in full steps, of which each decodes for its share of the sequences, too;
        and how many tokens that gives them."""
        if not prompt_tokens:
            return 0.0, 0.0
        times, limits, dp, pp = self._times.of(layout), self._limits, layout.dp, layout.pp
        rows = sequences / dp / pp
        decode = StepLoad(decodes=rows, context=rows * self._context)
        tokens = limits.max_num_batched_tokens - rows
        if pp > 1:
            costs = limits.costs[layout]
            tokens = min(tokens, max(MIN_CHUNK_TOKENS, costs.mixed - costs.decode(rows, decode.context)))
        tokens = max(1.0, tokens)
        steps = prompt_tokens / dp / tokens
        return (steps + pp - 1) * times.busiest_s(decode + self._prompts(tokens)), steps * rows * dp

    def move_s(self, mode: Mode, target: Mode) -> float:
        """Seconds to get from one mode to another, residents' KV included where it cannot stay on the devices.

        In a surge on other replicas it is on the host.
        """
        seconds = self._times.transition_s if mode.layout != target.layout else 0.0
        moves, empties = mode.home != target.home, mode.layout.dp != target.layout.dp
        if moves or (empties and target.is_surge):
            seconds += self._times.swap_s(self._kv_bytes, True)
        if moves or (empties and mode.is_surge):
            seconds += self._times.swap_s(self._kv_bytes, False)
        return seconds

    def surge_s(self, layout: Layout, prompt_tokens: float) -> float:
        """Seconds of nothing but so many tokens of prompts in a layout."""
        prompts = self._prompts(prompt_tokens / layout.dp)
        times = self._times.of(layout)
        step = times.best_step_tokens(prompts.prefill_tokens, MIN_CHUNK_TOKENS, self._limits.max_num_batched_tokens)
        return times.prefill_s(prompts, step)

    def beside_s(self, layout: Layout, prompt_tokens: float, free_tokens: float) -> float:
        """Seconds by which so many tokens of prompts lengthen the steps of all that can decode in a layout.

        Those that find room in `free_tokens` come in full steps. Beyond that a prompt comes whenever another sequence
        ends, a few tokens a step.
        """
        rows = min(self._batch(layout), self._decoding)
        bulk = min(prompt_tokens, free_tokens) if rows else prompt_tokens
        seconds, decoded = self._bulk_s(layout, bulk, rows)
        if not rows:
            return seconds
        alone_s = self.round_s(layout, rows, 0.0)
        riding = max(1.0, rows / self._expected * self._mean_prompt)
        rounds = (prompt_tokens - bulk) / riding
        return seconds - decoded / rows * alone_s + rounds * (self.round_s(layout, rows, riding) - alone_s)

    def round_s(self, layout: Layout, rows: float, riding_tokens: float) -> float:
        """Seconds of a token for each of so many running sequences, with so many tokens of prompts beside them."""
        dp = layout.dp
        load = StepLoad(decodes=rows / dp, context=rows / dp * self._context) + self._prompts(riding_tokens / dp)
        return self._times.of(layout).round_s(load)

    def _prompts(self, tokens: float) -> StepLoad:
        return StepLoad(tokens, tokens * self._mean_prompt / 2)

    def _batch(self, layout: Layout) -> float:
        """Sequences that can decode at once."""
        mean_tokens = max(1.0, self._context)
        return min(
            self._decoding + self.prompts,
            self._limits.max_num_seqs * layout.dp,
            max(1.0, self._device_tokens / mean_tokens),
        )
