"""What a policy answers with, what it may ask, and the policy of a single layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

from seesaw.engine.parallel.layout import Layout, Plan


class Phase(StrEnum):
    """What a mode is called in metrics."""

    PREFILL = "prefill"
    DECODE = "decode"
    TAIL = "tail"


@dataclass(frozen=True)
class Mode:
    """What the engine does at a moment.

    A surge (phase `prefill`) computes prompts in bulk in `layout`: sequences that decode stand still on the devices, in
    the rectangles of their `home`, or on the host, where each finished prompt goes. In any other mode everything that
    is on a device decodes, prompts are prefilled beside it, and whoever is on the host comes in as room comes free.
    """

    phase: Phase
    layout: Layout
    home: Layout  # whose rectangles the KV of decoding sequences has

    @classmethod
    def steady(cls, layout: Layout, phase: Phase = Phase.DECODE) -> Mode:
        return cls(phase, layout, layout)

    @classmethod
    def surge(cls, layout: Layout, home: Layout) -> Mode:
        return cls(Phase.PREFILL, layout, home)

    @property
    def is_surge(self) -> bool:
        return self.phase is Phase.PREFILL


class Situation(ABC):
    """What a policy may ask. Each answer is worked out when it is asked for: ask for the cheap ones first.

    Counts are of sequences; those that wait have no KV anywhere. Tokens of pools are of all replicas together.
    """

    mode: Mode
    attention_span: int  # the model's

    @property
    @abstractmethod
    def now_s(self) -> float:
        """Seconds on the engine's clock."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """Sequences without any KV."""

    @property
    @abstractmethod
    def waiting_tokens(self) -> int:
        """Of their known tokens."""

    @property
    @abstractmethod
    def prefilling(self) -> int:
        """On a device, some of their known tokens not yet computed."""

    @property
    @abstractmethod
    def hosted(self) -> int:
        """On the host, on the way there or back."""

    @property
    @abstractmethod
    def running(self) -> int:
        """On a device, decoding or standing still."""

    @property
    @abstractmethod
    def arrived(self) -> int:
        """All that ever came, but for those that were given up."""

    @property
    @abstractmethod
    def arrived_tokens(self) -> int:
        """Of their prompts, as far as those were prefilled or still are to be."""

    @property
    @abstractmethod
    def unfilled_tokens(self) -> int:
        """Of those that wait, and what is left of those that have begun."""

    @property
    @abstractmethod
    def expected_output_tokens(self) -> float:
        """Of a sequence, by all that was seen so far."""

    @property
    @abstractmethod
    def prefilled_tokens(self) -> int:
        """In steps sent since the start."""

    @property
    @abstractmethod
    def device_tokens(self) -> int:
        """That the device pools hold."""

    @property
    @abstractmethod
    def device_free_tokens(self) -> int:
        """That would still fit there."""

    @property
    @abstractmethod
    def host_tokens(self) -> int:
        """That the host pool holds."""

    @property
    @abstractmethod
    def host_free_tokens(self) -> int:
        """That would still fit there."""

    @abstractmethod
    def context_tokens(self) -> int:
        """Of the running sequences, together."""

    @abstractmethod
    def mean_left_tokens(self) -> float:
        """The output tokens that a running sequence may still ask for, on average."""

    @abstractmethod
    def kv_bytes(self, tokens: float) -> float:
        """Of K and V of so many tokens, all layers and heads."""

    @abstractmethod
    def can_surge(self, mode: Mode) -> bool:
        """Whether the first waiting prompt would find room on the devices and on the host in a surge, once it began."""

    @abstractmethod
    def can_move(self, mode: Mode) -> bool:
        """Whether all sequences that a mode does not leave on their devices would find room on the host."""

    @abstractmethod
    def phase_s(self) -> float:
        """Seconds since the mode's first step."""

    @abstractmethod
    def held_up_s(self) -> float:
        """For how much of that a prompt has waited and none has begun."""


class Policy(ABC):
    """Asked on every turn while no change of mode is under way; must be cheap. Owned by the scheduler's thread."""

    @abstractmethod
    def first_mode(self) -> Mode:
        """The mode an engine starts in; its layout is `Plan.first`."""

    @abstractmethod
    def next_mode(self, situation: Situation) -> Mode:
        """The mode to be in. One with another layout than the current one's starts a transition at once."""

    @abstractmethod
    def admits(self, situation: Situation) -> bool:
        """Whether waiting prompts are prefilled where others decode. Not asked during a surge."""


class StaticPolicy(Policy):
    """One layout for everything: continuous batching with chunked prefill."""

    def __init__(self, plan: Plan) -> None:
        self._mode = Mode.steady(plan.decode)

    def first_mode(self) -> Mode:
        return self._mode

    def next_mode(self, situation: Situation) -> Mode:
        return self._mode

    def admits(self, situation: Situation) -> bool:
        return True
