"""What a layout alone would have left to do by now, had it served all that came: a simulation in three numbers.

`Rivals` has one for each layout. Used by `CostPolicy`.
"""

from __future__ import annotations

import math

from seesaw.engine.parallel.layout import Layout
from seesaw.engine.planning.outlook import Outlook
from seesaw.engine.planning.policy import Situation

_NOBODY = 0.01  # fewer sequences are none
_LEAST_ROUND_S = 1e-6
_MOST_ROUNDS = 200  # with prompts, between two looks: a simulation must not take long


class Shadow:
    """Prompts that wait and sequences that decode, in fractions, as they would be in one layout alone.

    Outputs end at random, at the rate that is expected of all: what they turn out to be favours no layout.
    """

    def __init__(self) -> None:
        self.tokens = 0.0  # of the prompts that wait
        self.prompts = 0.0
        self.decoding = 0.0
        self._at_s = 0.0  # until when it is simulated; it may be a round ahead

    @property
    def unfinished(self) -> float:
        return self.prompts + self.decoding

    def set_to(self, situation: Situation) -> None:
        """What is really left."""
        self.tokens = float(situation.unfilled_tokens)
        self.prompts = float(situation.waiting + situation.prefilling)
        self.decoding = float(situation.running + situation.hosted)
        self._at_s = situation.now_s

    def add(self, tokens: float, prompts: float) -> None:
        self.prompts = max(0.0, self.prompts + prompts)
        self.tokens = max(0.0, self.tokens + tokens) if self.prompts else 0.0

    def stand_still(self, now_s: float) -> None:
        self._at_s = now_s

    def surge_to(self, situation: Situation) -> None:
        """The prompts that a surge has really left; nobody has decoded meanwhile."""
        prompts = float(situation.waiting + situation.prefilling)
        self.decoding += max(0.0, self.prompts - prompts)
        self.tokens, self.prompts = float(situation.unfilled_tokens), prompts
        self._at_s = situation.now_s

    def serve(self, layout: Layout, outlook: Outlook, now_s: float) -> None:
        """Continuous batching up to now."""
        for _ in range(_MOST_ROUNDS):
            if self._at_s >= now_s:
                return
            if self.unfinished < _NOBODY:
                self.tokens = self.prompts = self.decoding = 0.0
                self._at_s = now_s
            elif self.prompts:
                self._at_s += self._mixed_round(layout, outlook)
            else:
                self._at_s += self._decode(layout, outlook, now_s - self._at_s)
        self._at_s = max(self._at_s, now_s)

    def _mixed_round(self, layout: Layout, outlook: Outlook) -> float:
        """A token for everybody, and all prompts beside them that have room; the seconds it takes."""
        most = outlook.most_at_once(layout)
        rows = min(self.decoding, most)
        room = max(most - self.decoding, 0.0 if rows >= 1 else 1.0)
        share = min(1.0, room / self.prompts, outlook.most_riding(layout, rows) / max(1.0, self.tokens))
        seconds = max(outlook.round_s(layout, rows, share * self.tokens), _LEAST_ROUND_S)
        self.decoding += share * self.prompts - rows / max(1.0, outlook.expected_output_tokens)
        self.tokens *= 1 - share
        self.prompts *= 1 - share
        if self.prompts < _NOBODY:
            self.tokens = self.prompts = 0.0
        return seconds

    def _decode(self, layout: Layout, outlook: Outlook, seconds: float) -> float:
        """Rounds of nothing but tokens, at least one and at most as many as fit; the seconds they take."""
        rows = min(self.decoding, outlook.most_at_once(layout))
        round_s = max(outlook.round_s(layout, rows, 0.0), _LEAST_ROUND_S)
        rounds = max(1.0, seconds // round_s)
        self.decoding *= math.exp(-rounds / max(1.0, outlook.expected_output_tokens) * rows / self.decoding)
        return rounds * round_s
