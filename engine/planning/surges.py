"""What surges really take beside their prompts, beyond the arithmetic. Used by `CostPolicy`.

Steps in flight that end one after another, copies that are waited for, a host that is late: each is too small to be
foreseen, and together they may be more than a small surge saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from seesaw.engine.planning.outlook import Outlook
from seesaw.engine.planning.policy import Mode, Situation

_CORRECTION = 0.5  # of a surge, in what is expected of the next; all of it for the first, before which nothing is known


@dataclass
class _Surge:
    """One that was decided on, and how long it took once sequences decode again."""

    mode: Mode
    began_s: float
    prefilled_tokens: int  # before it, and then by it
    there_and_back_s: float
    took_s: float | None = None


class Surges:
    """Follows every surge, from the decision until sequences decode again where they did."""

    def __init__(self) -> None:
        self._extra_s: float | None = None
        self._last: _Surge | None = None

    @property
    def extra_s(self) -> float:
        """Seconds that the next one is expected to take, beyond the arithmetic."""
        return self._extra_s or 0.0

    def begins(self, mode: Mode, situation: Situation, outlook: Outlook) -> None:
        """It was decided on now."""
        price_s = outlook.there_and_back_s(situation.mode, mode)
        self._last = _Surge(mode, situation.now_s, situation.prefilled_tokens, price_s)

    def is_over(self, situation: Situation) -> None:
        """None is going on."""
        last = self._last
        if last is not None and last.took_s is None:
            last.took_s = situation.now_s - last.began_s
            last.prefilled_tokens = situation.prefilled_tokens - last.prefilled_tokens

    def learn(self, outlook: Outlook) -> None:
        """From the last one, if it is over."""
        last = self._last
        if last is None or last.took_s is None:
            return
        self._last = None
        expected_s = last.there_and_back_s + outlook.surge_s(last.mode.layout, last.prefilled_tokens)
        extra_s = max(0.0, last.took_s - expected_s)
        if self._extra_s is not None:
            extra_s = self._extra_s + _CORRECTION * (extra_s - self._extra_s)
        self._extra_s = extra_s
