"""How long what is known would take, one way or another: arithmetic over measured times. Used by `CostPolicy`.

All ways are judged by the same simple picture, so what it leaves out (the last few sequences, how full a step happens
to be) it leaves out of all of them. Sums are over all replicas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from seesaw.engine.cost.balance import MIN_CHUNK_TOKENS, StepCost
from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.cost.times import StepLoad, pairs_of
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.planning.policy import Mode, Situation

_FEW = 512  # sequences that may be looked at one by one
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
        self.expected_output_tokens = expected = situation.expected_output_tokens
        self.prompts = situation.waiting
        self.prompt_tokens = situation.waiting_tokens
        if self.prompts:
            self._mean_prompt = self.prompt_tokens / self.prompts
        else:
            self._mean_prompt = situation.arrived_tokens / situation.arrived if situation.arrived else 0.0
        self.decoding = situation.running + situation.hosted + situation.prefilling
        few = situation.running <= _FEW
        self.outputs = self.decoding * min(expected, situation.mean_left_tokens() if few else expected)
        self._resident_context = situation.context_tokens()
        self._device_tokens = situation.device_tokens
        self._kv_bytes = situation.kv_bytes(self._resident_context)
        if situation.running:
            self._context = self._resident_context / situation.running
        else:
            self._context = self._mean_prompt + expected / 2
        # What a token attends to on average, of those that decode and of prompts.
        span = situation.attention_span
        self._decode_span = min(self._context, span)
        self._prompt_span = pairs_of(0, self._mean_prompt, span) / self._mean_prompt if self._mean_prompt else 0.0

    def decode_s(self, layout: Layout) -> float:
        """Seconds until all that decode have ended. Ends come at random: every half of those left takes
        as many rounds as the one before."""
        batch = min(self._batch(layout), self.decoding)
        if not batch:
            return 0.0
        rounds_per_half = self.outputs / batch * math.log(2)
        seconds = 0.0
        while batch >= 1:
            seconds += rounds_per_half * self.round_s(layout, batch * _MEAN_OF_A_HALF, 0.0)
            batch /= 2
        return seconds

    def capacity(self, layout: Layout, prompt_tokens: float) -> float:
        """Requests a second, with prompts of so many tokens, that a layout alone can serve in the long run."""
        outputs = self.expected_output_tokens
        most = self.most_at_once(layout)
        riding = most / outputs * prompt_tokens  # so many come in the place of those that end
        rows = most * min(1.0, self.most_riding(layout, most) / max(1.0, riding))
        return rows / outputs / self.round_s(layout, rows, rows / outputs * prompt_tokens)

    def serve_s(self, layout: Layout, tokens: float, requests: float) -> float:
        """Seconds of serving so many requests, with so many tokens of prompts, in one layout."""
        batch = min(requests, self.most_at_once(layout))
        if not batch:
            return 0.0
        seconds, decoded = self._bulk_s(layout, tokens, batch)
        outputs = max(0.0, requests * self.expected_output_tokens - decoded)
        return seconds + outputs / batch * self.round_s(layout, batch, 0.0)

    def surge_and_serve_s(self, surge: Mode, tokens: float, requests: float) -> float:
        """The same with all prompts in a surge, from its home."""
        home = surge.home
        batch = min(requests, self.most_at_once(home))
        if not batch:
            return 0.0
        seconds = self.surge_s(surge.layout, tokens) + self.there_and_back_s(Mode.steady(home), surge)
        return seconds + requests * self.expected_output_tokens / batch * self.round_s(home, batch, 0.0)

    def _bulk_s(self, layout: Layout, prompt_tokens: float, sequences: float) -> tuple[float, float]:
        """Seconds to prefill so many tokens in full steps, of which each decodes for its share of the sequences, too;
        and how many tokens that gives them."""
        if not prompt_tokens:
            return 0.0, 0.0
        times, dp, pp = self._times.of(layout), layout.dp, layout.pp
        rows = sequences / dp / pp
        decode = StepLoad(decodes=rows, context=rows * self._decode_span)
        tokens = self.most_riding(layout, sequences) / dp / pp
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

    def there_and_back_s(self, mode: Mode, surge: Mode) -> float:
        """Seconds that a surge takes, beside its prompts."""
        return self.move_s(mode, surge) + self.move_s(surge, mode)

    def surge_s(self, layout: Layout, prompt_tokens: float) -> float:
        """Seconds of nothing but so many tokens of prompts in a layout."""
        prompts = self._prompts(prompt_tokens / layout.dp)
        times = self._times.of(layout)
        step = times.best_step_tokens(prompts.prefill_tokens, MIN_CHUNK_TOKENS, self._limits.max_num_batched_tokens)
        return times.prefill_s(prompts, step)

    def beside_s(self, layout: Layout, prompt_tokens: float, free_tokens: float) -> float:
        """Seconds by which so many tokens of prompts lengthen the steps of all that can decode in a layout.

        Those that find room in `free_tokens` come in full steps. Beyond that a prompt comes whenever another sequence
        ends.
        """
        rows = min(self._batch(layout), self.decoding)
        bulk = min(prompt_tokens, free_tokens) if rows else prompt_tokens
        seconds, decoded = self._bulk_s(layout, bulk, rows)
        if not rows:
            return seconds
        alone_s = self.round_s(layout, rows, 0.0)
        riding = max(1.0, rows / self.expected_output_tokens * self._mean_prompt)
        rounds = (prompt_tokens - bulk) / riding
        return seconds - decoded / rows * alone_s + rounds * (self.round_s(layout, rows, riding) - alone_s)

    def most_riding(self, layout: Layout, sequences: float) -> float:
        """Tokens of prompts that the steps of a round hold at most, beside so many sequences that decode."""
        limits, ways = self._limits, layout.dp * layout.pp
        rows = sequences / ways
        tokens = limits.max_num_batched_tokens - rows
        if layout.pp > 1:
            costs = limits.costs[layout]
            tokens = min(tokens, max(MIN_CHUNK_TOKENS, costs.mixed - costs.decode(rows, rows * self._context)))
        return max(1.0, tokens) * ways

    def round_s(self, layout: Layout, rows: float, riding_tokens: float) -> float:
        """Seconds of a token for each of so many running sequences, while so many tokens of prompts come in on average.

        A prompt comes whole once there is room for it, if a step holds it: most rounds bring none, and others many.
        """
        times, dp = self._times.of(layout), layout.dp
        decode = StepLoad(decodes=rows / dp, context=rows / dp * self._decode_span)
        alone_s = times.round_s(decode)
        if not riding_tokens:
            return alone_s
        chunk = max(riding_tokens, min(self._mean_prompt, self.most_riding(layout, rows)))
        return alone_s + riding_tokens / chunk * (times.round_s(decode + self._prompts(chunk / dp)) - alone_s)

    def _prompts(self, tokens: float) -> StepLoad:
        return StepLoad(tokens, tokens * self._prompt_span)

    def _batch(self, layout: Layout) -> float:
        """Of those that are here, how many can decode at once."""
        return min(float(self.decoding + self.prompts), self.most_at_once(layout))

    def most_at_once(self, layout: Layout) -> float:
        """Sequences that can decode at once."""
        most = max(1.0, self._device_tokens / max(1.0, self._context))
        return min(float(self._limits.max_num_seqs * layout.dp), most)
