"""How long what is known would take, one way or another: arithmetic over measured times. Used by `CostPolicy`.

All ways are judged by the same simple picture, so what it leaves out (the last few sequences, how full a step happens
to be) it leaves out of all of them. Sums are over all replicas.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.cost.engine_times import EngineTimes
from engine.cost.times import StepLoad
from engine.parallel.layout import Layout
from engine.planning.policy import Situation


@dataclass(frozen=True)
class Limits:
    """What bounds a replica's steps."""

    max_num_seqs: int
    max_num_batched_tokens: int


class Outlook:
    """One moment's backlog: prompts that wait, sequences that decode or will, and the outputs still expected."""

    def __init__(self, situation: Situation, times: EngineTimes, limits: Limits) -> None:
        self._times = times
        self._limits = limits
        expected = situation.expected_output_tokens
        self.prompts = situation.waiting
        self.prompt_tokens = situation.waiting_tokens
        self._mean_prompt = self.prompt_tokens / self.prompts if self.prompts else 0.0
        self._decoding = situation.running + situation.hosted + situation.prefilling
        waiting_outputs = min(float(situation.waiting_output_tokens), expected * self.prompts)
        self._outputs = waiting_outputs + expected * self._decoding
        self._resident_context = situation.context_tokens()
        self._free_tokens = situation.device_free_tokens
        self._device_tokens = situation.device_tokens
        self._kv_bytes = situation.kv_bytes(self._resident_context)
        if situation.running:
            self._context = self._resident_context / situation.running
        else:
            self._context = self._mean_prompt + expected / 2

    def steady_s(self, layout: Layout, prompt_tokens: float, free_tokens: float) -> float:
        """Seconds to decode everything in a layout, prefilling so many tokens of prompts beside it.

        As many of them as find room at once, in `free_tokens`, are prefilled in full steps. The others come one by one
        as room comes free, and ride along: where reading weights takes longer than their products, nearly for nothing.
        """
        times, dp = self._times.of(layout), layout.dp
        bulk = min(prompt_tokens, free_tokens)
        seconds = times.prefill_s(self._prompts(bulk / dp), self._limits.max_num_batched_tokens)
        batch = self._batch(layout)
        if not batch:
            return seconds
        rounds = self._outputs / batch
        riding = (prompt_tokens - bulk) / dp
        rows = batch / dp
        load = StepLoad(decodes=rows, context=rows * self._context) + self._prompts(riding / max(rounds, 1.0))
        return seconds + rounds * times.round_s(load)

    def move_s(self, layout: Layout, home: Layout, target: Layout, target_home: Layout) -> float:
        """Seconds to get from one layout to another, residents' KV included where its rectangles change."""
        seconds = self._times.transition_s if layout != target else 0.0
        if home != target_home:
            seconds += self._times.swap_s(self._kv_bytes, True) + self._times.swap_s(self._kv_bytes, False)
        return seconds

    def surge_s(self, layout: Layout, prompt_tokens: float) -> float:
        """Seconds of nothing but so many tokens of prompts in a layout."""
        prompts = self._prompts(prompt_tokens / layout.dp)
        step = self._step_tokens(layout, prompts.prefill_tokens)
        return self._times.of(layout).prefill_s(prompts, step)

    def beside_s(self, layout: Layout, prompt_tokens: float) -> float:
        """Seconds by which those would lengthen the steps of all that can decode in a layout."""
        times, dp = self._times.of(layout), layout.dp
        rows = min(self._batch(layout), self._decoding) / dp
        decode = StepLoad(decodes=rows, context=rows * self._context)
        tokens = prompt_tokens / dp
        steps = max(1.0, tokens / self._limits.max_num_batched_tokens)
        alone_s = times.round_s(decode) if rows else 0.0
        return steps * (times.round_s(decode + self._prompts(tokens / steps)) - alone_s)

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

    def _step_tokens(self, layout: Layout, tokens: float) -> float:
        """A pipeline fills and drains sooner with smaller steps."""
        if layout.pp == 1:
            return self._limits.max_num_batched_tokens
        return max(256.0, min(self._limits.max_num_batched_tokens, tokens / (4 * layout.pp)))
