"""When to change layout: the one decision that is a matter of opinion, behind a small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

from engine.config import EngineConfig
from engine.parallel.layout import Layout, Plan


class Phase(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    TAIL = "tail"


def phase_layout(plan: Plan, phase: Phase) -> Layout:
    if phase is Phase.TAIL:
        assert plan.tail is not None
        return plan.tail
    return plan.prefill if phase is Phase.PREFILL else plan.decode


def home_layout(plan: Plan, phase: Phase) -> Layout:
    """Where decoding sequences belong in a phase: through a prefill phase they keep the decode layout's rectangles."""
    return plan.decode if phase is Phase.PREFILL else phase_layout(plan, phase)


@dataclass(frozen=True)
class View:
    """What a policy may know. Counts are of sequences; waiting ones have no KV anywhere."""

    phase: Phase
    waiting: int
    waiting_tokens: int
    can_surge: bool  # the first waiting prompt would find room on the host in the prefill phase
    can_tail: bool  # all running sequences would find room on the host on their way to the tail layout
    prefilling: int  # on the device, some of their known tokens not yet computed
    hosted: int  # in the host pool, on the way there or back
    running: int  # on the device, decoding or standing still
    phase_s: float  # since the phase's first step
    held_up_s: float  # how much of that the first waiting prompt has been kept waiting


class Policy(ABC):
    """Asked on every turn while no change of phase is under way; must be cheap and have no side effects."""

    @abstractmethod
    def first_phase(self) -> Phase:
        """The phase an engine starts in."""

    @abstractmethod
    def next_phase(self, view: View) -> Phase:
        """The phase to be in. Another one than `view.phase` starts a transition at once."""

    @abstractmethod
    def prefill_in_decode(self, view: View) -> bool:
        """Whether waiting prompts are prefilled right in the decode (or tail) layout, mixed with decode."""


class StaticPolicy(Policy):
    """Prefill and decode share a layout: continuous batching with chunked prefill, and perhaps a tail."""

    def __init__(self, plan: Plan, tail_max_seqs: int) -> None:
        self._has_tail = plan.tail is not None and plan.tail != plan.decode
        self._tail_max_seqs = tail_max_seqs

    def first_phase(self) -> Phase:
        return Phase.DECODE

    def next_phase(self, view: View) -> Phase:
        if view.phase is Phase.TAIL:
            return Phase.DECODE if view.waiting or view.prefilling else Phase.TAIL
        return Phase.TAIL if self._is_tail(view) else Phase.DECODE

    def prefill_in_decode(self, view: View) -> bool:
        return view.phase is Phase.DECODE

    def _is_tail(self, view: View) -> bool:
        quiet = not (view.waiting or view.prefilling or view.hosted)
        return self._has_tail and quiet and view.can_tail and 0 < view.running <= self._tail_max_seqs


class PaperPolicy(StaticPolicy):
    """Transition-minimizing scheduling (arXiv 2503.06433, section 4): prefill until the host pool is full or no
    prompt waits, decode until all of the host pool has been swapped in.

    Beyond the paper: fewer than `surge_min_tokens` waiting tokens are prefilled in the decode layout, so a short
    queue never switches; `max_stall_s` and `max_wait_s` bound how long either side can be held up; a tail phase.
    """

    def __init__(self, plan: Plan, config: EngineConfig) -> None:
        super().__init__(plan, config.tail_max_seqs)
        self._surge_min_tokens = config.surge_threshold_tokens
        self._max_stall_s = config.max_stall_s
        self._max_wait_s = config.max_wait_s

    def next_phase(self, view: View) -> Phase:
        if view.phase is Phase.PREFILL:
            return self._after_prefill(view)
        overdue = view.held_up_s > self._max_wait_s
        if self._wants_surge(view) and view.can_surge and (view.hosted == 0 or overdue):
            return Phase.PREFILL
        return super().next_phase(view)

    def prefill_in_decode(self, view: View) -> bool:
        stuck = view.hosted == 0 and not view.can_surge  # room on the host comes only when running ones end
        return view.phase is Phase.DECODE and (stuck or not self._wants_surge(view))

    def _wants_surge(self, view: View) -> bool:
        return view.waiting > 0 and view.waiting_tokens >= self._surge_min_tokens

    def _after_prefill(self, view: View) -> Phase:
        decodable = view.running + view.hosted > 0
        if decodable and view.phase_s > self._max_stall_s:
            return Phase.DECODE  # half-done prompts come along
        if view.prefilling:
            return Phase.PREFILL
        if view.waiting and view.can_surge:
            worthwhile = decodable or self._wants_surge(view)  # a short queue is better served where it can decode
            return Phase.PREFILL if worthwhile else Phase.DECODE
        return Phase.DECODE if decodable else Phase.PREFILL


def make_policy(plan: Plan, config: EngineConfig) -> Policy:
    if plan.prefill == plan.decode:
        return StaticPolicy(plan, config.tail_max_seqs)
    return PaperPolicy(plan, config)
