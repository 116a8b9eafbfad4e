"""Which phase the engine is in, and the change from one to another: drain, evacuate, re-shard the weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from engine.parallel.layout import Layout
from engine.scheduler.flight import InFlight
from engine.scheduler.ledger import Ledger
from engine.scheduler.policy import Phase, Policy, View, home_layout, phase_layout
from engine.scheduler.request import ON_DEVICE, SeqState, Sequence
from engine.steps import Transition

logger = logging.getLogger(__name__)

MOVING = (SeqState.SWAPPING_OUT, SeqState.HOSTED, SeqState.SWAPPING_IN)


@dataclass
class Change:
    """A change of phase under way, with the times of its parts on the executor's clock."""

    target: Phase
    started_s: float
    drained_s: float | None = None
    transition_id: int | None = None


class PhaseChanger:
    """Owns the current phase. A change takes three parts:

    1. drain: no new steps; those in flight and the swap-ins complete, so that every token is known to the host;
    2. evacuate: sequences whose KV is in rectangles of another layout than the new phase needs set off for the host
       (their copies carry their own layout, so the weights need not wait for them, unless dp changes: then the block
       ids of the replicas change their meaning and all devices must be empty first);
    3. weights: every rank changes its weights.
    """

    def __init__(self, ledger: Ledger, policy: Policy) -> None:
        self._ledger = ledger
        self._policy = policy
        self._plan = ledger.plan
        self._change: Change | None = None
        self._entered_s = ledger.now
        self.phase = policy.first_phase()
        self.layout = phase_layout(self._plan, self.phase)
        ledger.residency.enter(self.layout)
        if ledger.trace is not None:
            ledger.trace.enter(self.phase, self.layout, ledger.now)

    @property
    def changing(self) -> bool:
        return self._change is not None

    def advance(self) -> bool:
        """Start or carry on a change; True while one is under way (no steps may be sent)."""
        now = self._ledger.now
        if self._change is None:
            target = self._policy.next_phase(self.view())
            if target is self.phase:
                return False
            self._change = Change(target, now)
        change = self._change
        if change.transition_id is not None:
            return True
        roster, residency = self._ledger.roster, self._ledger.residency
        if change.drained_s is None:
            if any(r.forwards_in_flight for r in residency.replicas) or roster.count(SeqState.SWAPPING_IN):
                return True
            change.drained_s = now
            for seq in self._evacuees(change.target):
                self._ledger.take_off(seq)
        target_layout = phase_layout(self._plan, change.target)
        if target_layout.dp != self.layout.dp and self._ledger.swaps_in_flight:
            return True
        transition = Transition(self._ledger.next_id(), self._plan.index(target_layout))
        change.transition_id = transition.id
        self._ledger.send(transition, self._plan.world_size)
        return True

    def transitioned(self, flight: InFlight) -> None:
        """All ranks have the new layout's weights."""
        change, now = self._change, self._ledger.now
        assert change is not None and change.drained_s is not None
        layout = phase_layout(self._plan, change.target)
        drain_s, evacuate_s = change.drained_s - change.started_s, flight.sent_s - change.drained_s
        weights_s = now - flight.sent_s
        name = f"{self.layout}->{layout}"
        self._ledger.counters.changed(name, drain=drain_s, evacuate=evacuate_s, weights=weights_s)
        if self._ledger.trace is not None:
            parts = {"drain_s": drain_s, "evacuate_s": evacuate_s, "weights_s": weights_s}
            self._ledger.trace.transition(name, change.started_s, now, **parts)
            self._ledger.trace.enter(change.target, layout, now)
        view = self.view()
        logger.info(
            f"{self.phase} {self.layout} -> {change.target} {layout} in {now - change.started_s:.3f} s "
            f"(drain {drain_s:.3f}, evacuate {evacuate_s:.3f}, weights {weights_s:.3f}), "
            f"after {now - self._entered_s:.1f} s in {self.layout}; "
            f"{view.waiting} waiting, {view.running} running, {view.hosted} on the host"
        )
        self._ledger.counters.left(self.phase, now)
        self._ledger.working_since_s = None
        self._change = None
        self._entered_s = now
        self.phase, self.layout = change.target, layout
        self._ledger.residency.enter(layout)

    def admits(self) -> bool:
        """Whether waiting prompts may start in the current layout. Those whose KV waits on the host go before them."""
        if self.phase is Phase.PREFILL:
            return True
        if not self._ledger.roster.count(SeqState.WAITING):
            return False  # nobody to ask the policy about, as on most turns
        return not self._ledger.roster.count(SeqState.HOSTED) and self._policy.prefill_in_decode(self.view())

    def view(self) -> View:
        count, now = self._ledger.roster.count, self._ledger.now
        first = next(self._ledger.roster.walk(SeqState.WAITING), None)
        # The bounds count from a phase's first step: were they to end it before, nobody would ever get on.
        since_s = self._ledger.working_since_s if self._ledger.working_since_s is not None else now
        return View(
            phase=self.phase,
            waiting=count(SeqState.WAITING),
            waiting_tokens=self._ledger.roster.waiting_tokens,
            can_surge=first is not None and self._host_room(Phase.PREFILL) >= self._blocks(len(first.tokens)),
            can_tail=self._plan.tail is not None and self._host_room(Phase.TAIL) >= 0,
            prefilling=count(SeqState.PREFILL),
            hosted=count(*MOVING),
            running=count(SeqState.RUNNING, SeqState.LEAVING),
            phase_s=now - since_s,
            held_up_s=now - max(since_s, first.arrived_s) if first else 0.0,
        )

    def _blocks(self, tokens: int) -> int:
        return self._ledger.residency.blocks_for(tokens)

    def _host_room(self, phase: Phase) -> int:
        """Host blocks that would be free in a phase, once those had left their devices that must for it."""
        leaving = () if phase is self.phase else self._evacuees(phase)
        return self._ledger.residency.host.free - sum(self._blocks(seq.dispatched) for seq in leaving)

    def _evacuees(self, phase: Phase) -> list[Sequence]:
        """Sequences on a device whose KV is not where a phase needs it."""
        target, layouts = phase_layout(self._plan, phase), self._plan.layouts
        return [
            seq
            for seq in self._ledger.roster.line(*ON_DEVICE)
            if layouts[seq.layout] != self._wanted_layout(seq, phase) or layouts[seq.layout].dp != target.dp
        ]

    def _wanted_layout(self, seq: Sequence, phase: Phase) -> Layout:
        return phase_layout(self._plan, phase) if seq.in_prefill else home_layout(self._plan, phase)
