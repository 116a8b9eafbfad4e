"""Commands in flight: who still has to report."""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.engine.cost.times import StepLoad
from seesaw.engine.scheduler.rows import NO_SLOTS, Ints
from seesaw.engine.scheduler.sequence import Sequence
from seesaw.engine.wire.commands import Forward, Report, Swap, Transition


@dataclass
class InFlight:
    """A command is complete once every rank that got it has reported.

    Of a forward, those that decode are sampled, by slot, then `sequences`, whose chunk ends in a token; `prefills` have
    a chunk each. Of a swap, `sequences` is whose KV it is. `kind` says what a forward computes: `prefill`, `decode` or
    `mixed`.
    """

    command: Forward | Swap | Transition
    waiting_for: int  # ranks
    sent_s: float
    sequences: list[Sequence] = field(default_factory=list)
    prefills: list[Sequence] = field(default_factory=list)
    slots: Ints = field(default_factory=lambda: NO_SLOTS)
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
