"""The policy by cost: whatever is soonest done, by measured times, and a change only where it pays for itself."""

from __future__ import annotations

import math

from engine.config import EngineConfig
from engine.cost.balance import StepCost
from engine.cost.engine_times import EngineTimes
from engine.parallel.layout import Layout, Plan
from engine.planning.outlook import Limits, Outlook
from engine.planning.policy import Mode, Phase, Policy, Situation

# Between two looks; what happens meanwhile cannot matter much.
_LOOK_EVERY_S = 0.05
# Of a surge's own time, what it must save beyond its price: no rate is known better.
_LEAST_GAIN = 0.02
# Of the time that is left, what a change of where sequences decode must save: it stands or falls with the last few and
# longest of them, of which least is known.
_LEAST_MOVE_GAIN = 0.15
# Of a step's time, what another layout must save to be missed at all: a change has costs that are not counted.
_LEAST_MISSED = 0.05
_LEAST_MISSED_S = 1.0  # and for so long, together: however little a change costs, its chances are not known sooner
# Of the waiting tokens that the host could ever take at once, the share that it must be able to take now: a surge's
# price does not depend on its size.
_LEAST_SURGE = 0.7


class CostPolicy(Policy):
    """Steady where sequences decode, surges where they pay, and another place to decode where that is much better.

    - A surge is begun when the time that it saves on what waits exceeds both transitions. What prompts would cost here
      is what they add to the steps of those who decode, so what these would have got done meanwhile is counted.
    - It ends when the rest costs no more beside decoding, when the host pool is full, or after `max_stall_s`.
    - Decoding moves to another layout, a tail's for instance, when all that is left would be done much sooner there.
    - Where arrivals never let a backlog build up, the time that another layout would have saved is added up, and once
      it would have paid for two changes, the engine changes (the ski-rental rule: at most twice the best in hindsight).
    """

    def __init__(self, plan: Plan, times: EngineTimes, config: EngineConfig) -> None:
        self._times = times
        self._max_stall_s = config.max_stall_s
        costs = {layout: StepCost.of(times.of(layout)) for layout in plan.layouts}
        self._limits = Limits(config.max_num_seqs, config.max_num_batched_tokens, costs)
        self._steady = {layout: Mode.steady(layout, _phase(plan, layout)) for layout in plan.layouts}
        self._first = self._steady[plan.first]
        self._looked_s = -math.inf
        self._counts = False  # whether all since the last look was steady work
        self._seen = (0, 0, 0)
        self._missed_s = dict.fromkeys(plan.layouts, 0.0)  # by layout: what it would have saved since the last change
        self._prefilled_tokens = 0

    def first_mode(self) -> Mode:
        return self._first

    def admits(self, situation: Situation) -> bool:
        return True  # were a surge better, it would have begun

    def next_mode(self, situation: Situation) -> Mode:
        mode = situation.mode
        if mode.is_surge:
            self._counts = False
            return self._after_surge(situation)
        if not self._is_due(situation):
            return mode
        outlook = Outlook(situation, self._times, self._limits)
        self._add_up(situation, outlook)
        target = self._surge_that_pays(situation, outlook) or self._better_place(situation, outlook)
        if target is None:
            return mode
        self._missed_s = dict.fromkeys(self._missed_s, 0.0)
        return target

    def _is_due(self, situation: Situation) -> bool:
        """Whether there is work, and something has changed since the last look, or some time has passed."""
        seen = (situation.waiting, situation.running + situation.prefilling, situation.hosted)
        if not any(seen):
            self._counts = False
            return False
        grown = seen[0] > 1.1 * self._seen[0] + 1
        if not grown and 0 <= situation.now_s - self._looked_s < _LOOK_EVERY_S:
            return False
        self._seen = seen
        return True

    def _add_up(self, situation: Situation, outlook: Outlook) -> None:
        """What other layouts would have saved since the last look, at what was done meanwhile."""
        elapsed_s = situation.now_s - self._looked_s if self._counts else 0.0
        prefilled = situation.prefilled_tokens - self._prefilled_tokens
        self._looked_s, self._prefilled_tokens, self._counts = situation.now_s, situation.prefilled_tokens, True
        rows, current = situation.running, situation.mode.layout
        if elapsed_s <= 0 or not (rows or prefilled):
            return
        alone_s = outlook.round_s(current, rows, 0.0) if rows else elapsed_s
        riding = min(prefilled * alone_s / elapsed_s, float(self._limits.max_num_batched_tokens))
        here_s = outlook.round_s(current, rows, riding)
        if here_s <= 0:
            return
        for layout in self._missed_s:
            saved = 1.0 - outlook.round_s(layout, rows, riding) / here_s - _LEAST_MISSED
            self._missed_s[layout] = max(0.0, self._missed_s[layout] + elapsed_s * saved)

    def _surge_that_pays(self, situation: Situation, outlook: Outlook) -> Mode | None:
        """The surge that saves most, of those that leave sequences where they decode now."""
        mode = situation.mode
        # While somebody is on the host, prompts are not prefilled here either: a later surge is as good, and larger.
        tokens = self._surge_tokens(situation) if not situation.hosted else 0.0
        if not tokens:
            return None
        beside_s = outlook.beside_s(mode.layout, tokens, situation.device_free_tokens)
        best, best_s = None, 0.0
        for layout in self._steady:
            if layout == mode.layout:
                continue
            surge = Mode.surge(layout, mode.layout)
            surge_s = outlook.surge_s(layout, tokens)
            there_and_back_s = outlook.move_s(mode, surge) + outlook.move_s(surge, mode)
            saved_s = beside_s - surge_s * (1 + _LEAST_GAIN) - there_and_back_s
            if saved_s > best_s and situation.can_surge(surge):
                best, best_s = surge, saved_s
        return best

    def _better_place(self, situation: Situation, outlook: Outlook) -> Mode | None:
        """Another layout to decode in: one that was missed for long, or where the last ones would end much sooner."""
        mode = situation.mode
        is_tail = not (situation.waiting or situation.prefilling or situation.hosted)
        best, best_s = None, outlook.decode_s(mode.layout) * (1 - _LEAST_MOVE_GAIN) if is_tail else 0.0
        for layout, steady in self._steady.items():
            if layout == mode.layout:
                continue
            move_s = outlook.move_s(mode, steady)
            # Who comes next may be better served here: the way back counts, too.
            seconds = outlook.decode_s(layout) + 2 * move_s if is_tail else math.inf
            # Enough to change on no prospect but more of the same.
            was_missed = self._missed_s[layout] > 2 * move_s + _LEAST_MISSED_S
            if (was_missed or seconds < best_s) and situation.can_move(steady):
                best, best_s = steady, min(seconds, best_s)
        return best

    def _surge_tokens(self, situation: Situation) -> float:
        """What a surge could prefill now; 0 if the host has too little room for one."""
        tokens = situation.waiting_tokens
        most = min(tokens, situation.host_tokens)
        now = min(tokens, situation.host_free_tokens)
        return float(now) if now >= _LEAST_SURGE * most else 0.0

    def _after_surge(self, situation: Situation) -> Mode:
        mode = situation.mode
        home = self._steady[mode.home]
        decodable = situation.running + situation.hosted
        if decodable and situation.phase_s() > self._max_stall_s:
            return home  # half-done prompts come along
        if situation.prefilling:
            return mode
        if not situation.waiting or not situation.can_surge(mode):
            return home
        outlook = Outlook(situation, self._times, self._limits)
        tokens = min(float(outlook.prompt_tokens), float(situation.host_free_tokens))
        is_better = outlook.surge_s(mode.layout, tokens) < outlook.beside_s(
            home.layout, tokens, situation.device_free_tokens
        )
        return mode if is_better else home


def _phase(plan: Plan, layout: Layout) -> Phase:
    return Phase.TAIL if layout == plan.tail and layout not in (plan.prefill, plan.decode) else Phase.DECODE
