"""How much better each layout alone would have been than what the engine did. Used by `CostPolicy`."""

from __future__ import annotations

from collections.abc import Iterable

from seesaw.engine.parallel.layout import Layout
from seesaw.engine.planning.arrivals import Came
from seesaw.engine.planning.outlook import Outlook
from seesaw.engine.planning.policy import Mode, Situation
from seesaw.engine.planning.shadow import Shadow

# Of what is unfinished here, what another layout must have less of to be missed: a change has costs not counted.
_LEAST_MISSED = 0.05


class Rivals:
    """A shadow of each layout, and one of the engine itself that stands still where the engine does.

    Time is summed over requests: a second in which two fewer are unfinished counts twice. So it is with those who stand
    still in a surge, and with those who wait for one.
    """

    def __init__(self, layouts: Iterable[Layout]) -> None:
        self._here = Shadow()
        self._alone = {layout: Shadow() for layout in layouts}
        self._saved = dict.fromkeys(self._alone, 0.0)  # since the last move, in seconds of a request
        self._mode: Mode | None = None  # at the last look
        self._looked_s = 0.0
        self._ends_of_surge = 0  # how many had ended once all had that decoded when the last surge was over

    def look(self, situation: Situation, outlook: Outlook, came: Came) -> None:
        """Everyone up to now."""
        mode, before, now_s, here = situation.mode, self._mode, situation.now_s, self._here
        elapsed_s, self._mode, self._looked_s = now_s - self._looked_s, mode, now_s
        if before is None or before.home != mode.home:  # a race from where the engine is now
            for shadow in (here, *self._alone.values()):
                shadow.set_to(situation)
            self._saved = dict.fromkeys(self._saved, 0.0)
            return
        if mode == before and not mode.is_surge:
            here.serve(mode.layout, outlook, now_s)
        else:
            here.stand_still(now_s)
        here.add(came.tokens, came.requests)
        if mode.is_surge:
            here.surge_to(situation)
        elif before.is_surge:
            self._ends_of_surge = _ended(situation) + situation.running + situation.hosted
        for layout, alone in self._alone.items():
            alone.serve(layout, outlook, now_s)
            alone.add(came.tokens, came.requests)
            fewer = here.unfinished * (1 - _LEAST_MISSED) - alone.unfinished
            self._saved[layout] = max(0.0, self._saved[layout] + elapsed_s * fewer)

    def is_settled(self, situation: Situation) -> bool:
        """Whether as many have ended since the last surge as decoded when it did: until then this is where to be."""
        return _ended(situation) >= self._ends_of_surge

    def saved_s(self, layout: Layout, outlook: Outlook) -> float:
        """What a layout alone would have saved since the last move, for each request that is unfinished here.

        0 unless it would also have no more prompts and no more outputs left now: then it is ahead, whatever comes.
        """
        alone, here, expected = self._alone[layout], self._here, outlook.expected_output_tokens
        if alone.unfinished > here.unfinished or alone.tokens > here.tokens:
            return 0.0
        # What really decodes may be nearer to its end than is expected of it.
        if alone.unfinished * expected > outlook.outputs + outlook.prompts * expected:
            return 0.0
        return self._saved[layout] / max(1.0, here.unfinished)


def _ended(situation: Situation) -> int:
    return situation.arrived - situation.waiting - situation.prefilling - situation.running - situation.hosted
