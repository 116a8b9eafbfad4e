"""The paper's policy, for comparison: it knows pools that are full or empty, and no times."""

from __future__ import annotations

from seesaw.engine.parallel.layout import Plan
from seesaw.engine.planning.policy import Mode, Phase, Policy, Situation
from seesaw.engine.values.config import EngineConfig


class PaperPolicy(Policy):
    """Transition-minimizing scheduling (arXiv 2503.06433, section 4): prefill until the host pool is full or no
    prompt waits, decode until all of the host pool has been swapped in.

    Beyond the paper: fewer than `surge_min_tokens` waiting tokens are prefilled in the decode layout, so a short
    queue never switches; `max_stall_s` and `max_wait_s` bound how long either side can be held up; a tail phase.
    """

    def __init__(self, plan: Plan, config: EngineConfig) -> None:
        self._steady = Mode.steady(plan.decode)
        self._surge = Mode.surge(plan.prefill, plan.decode) if plan.prefill != plan.decode else None
        has_tail = plan.tail is not None and plan.tail != plan.decode
        self._tail = Mode.steady(plan.tail, Phase.TAIL) if plan.tail is not None and has_tail else None
        self._surge_min_tokens = config.surge_threshold_tokens
        self._tail_max_seqs = config.tail_max_seqs
        self._max_stall_s = config.max_stall_s
        self._max_wait_s = config.max_wait_s

    def first_mode(self) -> Mode:
        return self._steady

    def next_mode(self, situation: Situation) -> Mode:
        mode = situation.mode
        if mode.is_surge:
            return self._after_surge(situation)
        if self._surge is not None and self._wants_surge(situation):
            overdue = situation.hosted and situation.held_up_s() > self._max_wait_s
            if (not situation.hosted or overdue) and situation.can_surge(self._surge):
                return self._surge
        if mode.phase is Phase.TAIL:
            return self._steady if situation.waiting or situation.prefilling else mode
        return self._tail if self._tail is not None and self._is_tail(situation, self._tail) else mode

    def admits(self, situation: Situation) -> bool:
        if situation.mode.phase is Phase.TAIL:
            return False
        if self._surge is None or not self._wants_surge(situation):
            return True
        # Room on the host comes only when running ones end. Whoever is there goes first, or has given way to who waits
        # (`Transitions.admits`), and would do so again.
        return not situation.can_surge(self._surge)

    def _wants_surge(self, situation: Situation) -> bool:
        return situation.waiting > 0 and situation.waiting_tokens >= self._surge_min_tokens

    def _after_surge(self, situation: Situation) -> Mode:
        decodable = situation.running + situation.hosted > 0
        if decodable and situation.phase_s() > self._max_stall_s:
            return self._steady  # half-done prompts come along
        if situation.prefilling:
            return situation.mode
        if situation.waiting and situation.can_surge(situation.mode):
            worthwhile = decodable or self._wants_surge(situation)  # a short queue is better served where it can decode
            return situation.mode if worthwhile else self._steady
        return self._steady if decodable or situation.waiting else situation.mode

    def _is_tail(self, situation: Situation, tail: Mode) -> bool:
        quiet = not (situation.waiting or situation.prefilling or situation.hosted)
        return quiet and 0 < situation.running <= self._tail_max_seqs and situation.can_move(tail)
