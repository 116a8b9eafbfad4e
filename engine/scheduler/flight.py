"""Commands in flight: who still has to report."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.cost.times import StepLoad
from engine.scheduler.sequence import Sequence
from engine.steps import Forward, Report, Swap, Transition


@dataclass
class InFlight:
    """A command is complete once every rank that got it has reported.

    `sequences` are those it names, `sampled` those whose chunk ends in a token, in the order of the tokens. `kind` says
    what a forward computes: `prefill`, `decode` or `mixed`.
    """

    command: Forward | Swap | Transition
    waiting_for: int  # ranks
    sent_s: float
    sequences: list[Sequence] = field(default_factory=list)
    sampled: list[Sequence] = field(default_factory=list)
    kind: str = ""
    load: StepLoad = StepLoad()  # of a forward
    seconds: float = 0.0  # of the slowest rank
    bytes: int = 0  # of all ranks

    def reported(self, report: Report) -> bool:
        """Take one rank's report; True if it was the last."""
        self.waiting_for -= 1
        self.seconds = max(self.seconds, report.seconds)
        self.bytes += report.bytes
        return self.waiting_for == 0
