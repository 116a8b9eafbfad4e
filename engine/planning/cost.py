"""The policy by cost: whatever is soonest done, by measured times, and a change only where it pays for itself."""

from __future__ import annotations

import math

from seesaw.engine.cost.balance import StepCost
from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.planning.arrivals import Arrivals
from seesaw.engine.planning.outlook import Limits, Outlook
from seesaw.engine.planning.policy import Mode, Phase, Policy, Situation
from seesaw.engine.planning.rivals import Rivals
from seesaw.engine.planning.surges import Surges
from seesaw.engine.values.config import EngineConfig

# Between two looks; what happens meanwhile cannot matter much.
_LOOK_EVERY_S = 0.05
# Of a surge's own time, what it must save beyond its price: no rate is known better.
_LEAST_GAIN = 0.02
# Of a surge's price, what it must save: copies slow its transitions down, and what either layout prefills in a row of
# steps is known to some per cent only.
_PRICE_MARGIN = 1.25
# Of the time that is left, what a change of where sequences decode must save: it stands or falls with the last few and
# longest of them, of which least is known.
_LEAST_MOVE_GAIN = 0.15
# Of the time of serving all here, what surges for another layout must save: more than a choice between them leaves.
_LEAST_RETURN_GAIN = 0.05
# What another layout must have saved each request to be missed: however little a change costs, its chances are not
# known sooner.
_LEAST_MISSED_S = 1.0
# Of what a layout can serve in the long run, what it serves without long queues.
_COMFORT = 0.8
# Of the waiting tokens that the host could ever take at once, the share that it must be able to take now: a surge's
# price does not depend on its size.
_LEAST_SURGE = 0.7


class CostPolicy(Policy):
    """Steady where sequences decode, surges where they pay, and another layout for all where that is better.

    - A surge is begun when the time that it saves on what waits exceeds both transitions by a quarter, and what surges
      turned out to take beyond that. What prompts would cost here is what they add to the steps of those who decode, so
      what these would have got done meanwhile is counted.
    - It ends when the rest costs no more beside decoding, when the host pool is full, or after `max_stall_s`.
    - Where requests keep coming, a surge makes those who decode stand still again and again, for a gain that is none if
      its layout alone keeps up with all that comes. Then the engine goes there to stay, if that is no longer a stall,
      and as soon as a surge would pay with what comes meanwhile. It goes on with surges from there if more comes than
      that layout can serve, and with surges all would be done sooner.
    - The time that each layout alone would have saved all requests is added up, and once it would have paid for two
      changes, the engine changes (the ski-rental rule: at most twice the best in hindsight).
    - The last ones move to another layout, a tail's for instance, when they would be done much sooner there.
    """

    def __init__(self, plan: Plan, times: EngineTimes, config: EngineConfig) -> None:
        self._times = times
        self._max_stall_s = config.max_stall_s
        costs = {layout: StepCost.of(times.of(layout)) for layout in plan.layouts}
        self._limits = Limits(config.max_num_seqs, config.max_num_batched_tokens, costs)
        self._steady = {layout: Mode.steady(layout, _phase(plan, layout)) for layout in plan.layouts}
        self._first = self._steady[plan.first]
        self._looked_s = -math.inf
        self._seen = (0, 0, 0)
        self._arrivals = Arrivals()
        self._rivals = Rivals(plan.layouts)
        self._surges = Surges()

    def first_mode(self) -> Mode:
        return self._first

    def admits(self, situation: Situation) -> bool:
        return True  # were a surge better, it would have begun

    def next_mode(self, situation: Situation) -> Mode:
        mode = situation.mode
        if mode.is_surge:
            if self._is_due(situation):
                self._look(situation)
            return self._after_surge(situation)
        self._surges.is_over(situation)
        if not self._is_due(situation):
            return mode
        outlook = self._look(situation)
        self._surges.learn(outlook)
        surge = self._surge_that_pays(situation, outlook)
        soon = surge or self._surge_that_pays(situation, outlook, with_more=True)
        target = self._elsewhere(situation, outlook, soon) or surge or self._surge_for_another_home(situation, outlook)
        if target is not None and target == surge:
            self._surges.begins(target, situation, outlook)
        return target or self._tail(situation, outlook) or mode

    def _look(self, situation: Situation) -> Outlook:
        self._looked_s = situation.now_s
        outlook = Outlook(situation, self._times, self._limits)
        self._rivals.look(situation, outlook, self._arrivals.look(situation))
        return outlook

    def _is_due(self, situation: Situation) -> bool:
        """Whether there is work, and something has changed since the last look, or some time has passed."""
        seen = (situation.waiting, situation.running + situation.prefilling, situation.hosted)
        if not any(seen):
            return False
        grown = seen[0] > 1.1 * self._seen[0] + 1
        if not grown and 0 <= situation.now_s - self._looked_s < _LOOK_EVERY_S:
            return False
        self._seen = seen
        return True

    def _surge_that_pays(self, situation: Situation, outlook: Outlook, with_more: bool = False) -> Mode | None:
        """The surge that saves most, of those that leave sequences where they decode now. `with_more`: as if all waited
        already that comes while it lasts, if that is more than can be served here."""
        mode = situation.mode
        # While somebody is on the host, prompts are not prefilled here either: a later surge is as good, and larger.
        tokens = self._surge_tokens(situation) if not situation.hosted else 0.0
        if not tokens or (with_more and self._keeps_up(mode.layout, outlook)):
            return None
        best, best_s = None, 0.0
        for layout in self._steady:
            if layout == mode.layout:
                continue
            surge = Mode.surge(layout, mode.layout)
            there_and_back_s, surge_s = outlook.there_and_back_s(mode, surge), outlook.surge_s(layout, tokens)
            all_tokens = tokens
            if with_more:
                more = (there_and_back_s + surge_s) * self._arrivals.requests_per_s * self._arrivals.mean_tokens
                all_tokens = max(tokens, min(tokens + more, float(situation.host_free_tokens)))
                surge_s = outlook.surge_s(layout, all_tokens)
            beside_s = outlook.beside_s(mode.layout, all_tokens, situation.device_free_tokens)
            price_s = _PRICE_MARGIN * there_and_back_s + self._surges.extra_s
            saved_s = beside_s - surge_s * (1 + _LEAST_GAIN) - price_s
            if saved_s > best_s and situation.can_surge(surge):
                best, best_s = surge, saved_s
        return best

    def _elsewhere(self, situation: Situation, outlook: Outlook, surge: Mode | None) -> Mode | None:
        """Another layout to serve all in: the surge's, to stay there, or one that was missed for long."""
        mode = situation.mode
        if surge is None and not self._rivals.is_settled(situation):
            return None
        # Where a surge is about to begin, its transitions are to be paid anyway.
        spared_s = outlook.there_and_back_s(mode, surge) if surge else -_LEAST_MISSED_S
        best, best_s = None, 0.0
        for layout, steady in self._steady.items():
            if layout == mode.layout:
                continue
            move_s = outlook.move_s(mode, steady)
            gain_s = self._rivals.saved_s(layout, outlook) + spared_s - 2 * move_s
            stays = (
                surge is not None
                and layout == surge.layout
                and self._arrivals.explain(outlook.prompts)
                and move_s <= spared_s + outlook.surge_s(layout, outlook.prompt_tokens)
            )
            if (stays or gain_s > best_s) and self._suits(steady, situation, outlook) and situation.can_move(steady):
                best, best_s = steady, max(gain_s, best_s)
        return best

    def _surge_for_another_home(self, situation: Situation, outlook: Outlook) -> Mode | None:
        """A surge in this layout, behind which sequences decode in another: where this one cannot keep up with what
        comes, and all would be done sooner so."""
        mode = situation.mode
        if not outlook.prompts or situation.hosted or self._keeps_up(mode.layout, outlook, share=1.0):
            return None
        here_s = outlook.serve_s(mode.layout, *self._expected(mode, outlook))
        best, best_s = None, here_s * (1 - _LEAST_RETURN_GAIN)
        for layout in self._steady:
            surge = Mode.surge(mode.layout, layout)
            if layout == mode.layout or not self._surge_tokens(situation):
                continue
            seconds = outlook.surge_and_serve_s(surge, *self._expected(mode, outlook)) + outlook.move_s(mode, surge)
            if seconds < best_s and situation.can_surge(surge):
                best, best_s = surge, seconds
        return best

    def _expected(self, mode: Mode, outlook: Outlook) -> tuple[float, float]:
        """Tokens of prompts and requests: what is left, and what comes until that is done."""
        tokens, requests = float(outlook.prompt_tokens), float(outlook.prompts + outlook.decoding)
        more = self._arrivals.requests_per_s * self._here_s(mode, outlook, tokens, requests)
        return tokens + more * self._arrivals.mean_tokens, requests + more

    def _suits(self, target: Mode, situation: Situation, outlook: Outlook) -> bool:
        """Whether another layout is the better place for what comes: it keeps up, and here does not; or what is left
        and what comes meanwhile are done no later there than here, surges included."""
        mode, layout, arrivals = situation.mode, target.layout, self._arrivals
        decodes_later = outlook.decode_s(layout) > outlook.decode_s(mode.layout)
        if decodes_later and (not outlook.prompts + situation.prefilling or self._keeps_up(mode.layout, outlook)):
            return False
        streams = arrivals.explain(outlook.prompts + situation.prefilling)
        if streams and self._keeps_up(layout, outlook):
            prompt_tokens = arrivals.mean_tokens
            if outlook.capacity(layout, prompt_tokens) > outlook.capacity(mode.layout, prompt_tokens):
                return True
        tokens, requests = self._expected(mode, outlook)
        there_s = outlook.serve_s(layout, tokens, requests) + outlook.move_s(mode, target)
        share = 1 + _LEAST_GAIN if streams else 1 - _LEAST_MOVE_GAIN
        return there_s < share * self._here_s(mode, outlook, tokens, requests)

    def _keeps_up(self, layout: Layout, outlook: Outlook, share: float = _COMFORT) -> bool:
        """Whether a layout alone can serve all that comes, with a share of what it can do in the long run."""
        arrivals = self._arrivals
        return arrivals.requests_per_s <= share * outlook.capacity(layout, arrivals.mean_tokens)

    def _here_s(self, mode: Mode, outlook: Outlook, tokens: float, requests: float) -> float:
        """Seconds of serving so much in this layout, with a surge if that is sooner."""
        surges = (Mode.surge(layout, mode.layout) for layout in self._steady if layout != mode.layout)
        with_surge_s = min(outlook.surge_and_serve_s(surge, tokens, requests) for surge in surges)
        return min(outlook.serve_s(mode.layout, tokens, requests), with_surge_s)

    def _tail(self, situation: Situation, outlook: Outlook) -> Mode | None:
        """The layout where all that is left would end much sooner than here, nobody waiting."""
        mode = situation.mode
        if situation.waiting or situation.prefilling or situation.hosted:
            return None
        best, best_s = None, outlook.decode_s(mode.layout) * (1 - _LEAST_MOVE_GAIN)
        for layout, steady in self._steady.items():
            if layout == mode.layout or not self._keeps_up(layout, outlook):
                continue
            # Who comes next may be better served here: the way back counts, too.
            seconds = outlook.decode_s(layout) + 2 * outlook.move_s(mode, steady)
            if seconds < best_s and situation.can_move(steady):
                best, best_s = steady, seconds
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
