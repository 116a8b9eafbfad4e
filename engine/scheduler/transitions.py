"""Which mode the engine is in, and the change from one to another: drain, evacuate, re-shard the weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from seesaw.engine.planning.policy import Mode, Policy
from seesaw.engine.scheduler.batcher import Batcher
from seesaw.engine.scheduler.flight import InFlight
from seesaw.engine.scheduler.idle import DRAIN, WEIGHTS
from seesaw.engine.scheduler.lifecycle import Lifecycle
from seesaw.engine.scheduler.room import make_room
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.scheduler.situation import SchedulerSituation, evacuees
from seesaw.engine.wire.commands import Transition

logger = logging.getLogger(__name__)


@dataclass
class Change:
    """A change of mode under way, with the times of its parts on the executor's clock."""

    target: Mode
    started_s: float
    drained_s: float | None = None
    transition_id: int | None = None


class Transitions:
    """Owns the current mode. A change of layout takes three parts:

    1. drain: no new steps; those in flight and the swap-ins complete, so that every token is known to the host;
    2. evacuate: sequences whose KV is in rectangles of another layout than the new mode needs set off for the host
       (their copies carry their own layout, so the weights need not wait for them, unless dp changes: then the block
       ids of the replicas change their meaning and all devices must be empty first), and so do the youngest where a
       surge needs room; whoever fits already comes in;
    3. weights: every rank changes its weights.
    """

    def __init__(self, lifecycle: Lifecycle, batcher: Batcher, policy: Policy) -> None:
        self._lifecycle = lifecycle
        self._batcher = batcher
        self._policy = policy
        self._plan = lifecycle.plan
        self._change: Change | None = None
        self._entered_s = lifecycle.now
        self.mode = policy.first_mode()
        self._situation = SchedulerSituation(lifecycle, self.mode)
        lifecycle.blocks.enter(self.mode.layout)
        lifecycle.idle.entered(self.mode.layout.dp, lifecycle.now)
        if lifecycle.trace is not None:
            lifecycle.trace.enter(self.mode.phase, self.mode.layout, lifecycle.now)

    @property
    def changing(self) -> bool:
        return self._change is not None

    @property
    def under_way(self) -> str:
        """The change of layout, written as `P2->T2`; empty if there is none."""
        change = self._change
        if change is None or change.target.layout == self.mode.layout:
            return ""
        return f"{self.mode.layout}->{change.target.layout}"

    @property
    def pause(self) -> str | None:
        """What keeps all replicas from new steps, as a cause of idle time; None if no change is under way."""
        if self._change is None:
            return None
        return DRAIN if self._change.drained_s is None else WEIGHTS

    def advance(self) -> bool:
        """Start or carry on a change; True while one is under way (no steps may be sent)."""
        lifecycle = self._lifecycle
        now, blocks = lifecycle.now, lifecycle.blocks
        if self._change is None:
            target = self._policy.next_mode(self._situation)
            if target == self.mode:
                return False
            self._change = Change(target, now)
        change = self._change
        if change.transition_id is not None:
            return True
        if change.drained_s is None:
            if any(r.forwards_in_flight for r in blocks.replicas) or lifecycle.queues.count(SeqState.SWAPPING_IN):
                return True
            change.drained_s = now
            self._evacuate(change.target)
        layout = change.target.layout
        if layout.dp != self.mode.layout.dp and lifecycle.swaps_in_flight:
            return True
        if layout == self.mode.layout:  # only who may be where has changed
            self._enter(change.target)
            return False
        transition = Transition(lifecycle.next_id(), self._plan.index(layout))
        change.transition_id = transition.id
        lifecycle.send_transition(transition)
        return True

    def _evacuate(self, target: Mode) -> None:
        lifecycle = self._lifecycle
        for seq in list(evacuees(lifecycle, target)):
            lifecycle.preempt(seq)
        if not target.is_surge:
            # Ahead of the weights: the ranks copy beside them.
            self._batcher.swap_in(target, self.mode.layout)
            return
        first = lifecycle.queues.first(SeqState.WAITING)
        if first is None or target.layout.dp != self.mode.layout.dp:
            return
        blocks_for, config = lifecycle.blocks.blocks_for, lifecycle.config
        # For all steps that are in flight at once, and one whose prompts are on their way to the host.
        wanted = (target.layout.max_in_flight + 1) * blocks_for(config.max_num_batched_tokens)
        dp = target.layout.dp
        wanted = min(
            wanted, blocks_for(-(-lifecycle.queues.waiting_tokens // dp)), lifecycle.blocks.host.available // 2
        )
        needed = blocks_for(first.known)
        for replica in lifecycle.blocks.replicas:
            make_room(lifecycle, replica, max(wanted, needed), keep_host_blocks=needed)

    def transitioned(self, flight: InFlight) -> None:
        """All ranks have the new layout's weights."""
        lifecycle, change = self._lifecycle, self._change
        now, before = lifecycle.now, self.mode
        assert change is not None and change.drained_s is not None
        mode = change.target
        drain_s, evacuate_s = change.drained_s - change.started_s, flight.sent_s - change.drained_s
        weights_s = now - flight.sent_s
        name = self.under_way
        lifecycle.counters.changed(name, drain=drain_s, evacuate=evacuate_s, weights=weights_s)
        lifecycle.times.observe_transition(weights_s)
        if lifecycle.trace is not None:
            parts = {"drain_s": drain_s, "evacuate_s": evacuate_s, "weights_s": weights_s}
            lifecycle.trace.transition(name, change.started_s, now, **parts)
        situation = self._situation
        logger.info(
            f"{before.phase} {before.layout} -> {mode.phase} {mode.layout} in {now - change.started_s:.3f} s "
            f"(drain {drain_s:.3f}, evacuate {evacuate_s:.3f}, weights {weights_s:.3f}), "
            f"after {now - self._entered_s:.1f} s in {before.layout}; "
            f"{situation.waiting} waiting, {situation.running} running, {situation.hosted} on the host"
        )
        self._entered_s = now
        self._enter(mode)

    def _enter(self, mode: Mode) -> None:
        lifecycle = self._lifecycle
        lifecycle.counters.left(self.mode.phase, lifecycle.now)
        if lifecycle.trace is not None:
            lifecycle.trace.enter(mode.phase, mode.layout, lifecycle.now)
        lifecycle.working_since_s = None
        self._change = None
        self._situation.entered(mode)
        self.mode = mode
        lifecycle.blocks.enter(mode.layout)
        lifecycle.idle.entered(mode.layout.dp, lifecycle.now)

    def admits(self) -> bool:
        """Whether waiting prompts may start in the current mode. Those whose KV waits on the host go before
        them, unless no prompt has begun for too long."""
        if self.mode.is_surge:
            return True
        queues = self._lifecycle.queues
        if not queues.count(SeqState.WAITING):
            return False  # nobody to ask the policy about, as on most turns
        # Those on the host go first, unless all of them give way to who waits.
        go_first = not queues.somebody_waits or not all(seq.yields for seq in queues.walk(SeqState.HOSTED))
        if queues.count(SeqState.HOSTED) and go_first and not self.keeps_waiting():
            return False
        return self._policy.admits(self._situation)

    def keeps_waiting(self) -> bool:
        """Whether a prompt waits and none has begun for longer than `max_wait_s`: one may, whoever else wants room."""
        return self._situation.held_up_s() > self._lifecycle.config.max_wait_s
