"""What a policy is asked about in tests: plain numbers instead of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass, field

from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.cost.times import Curve, Measured, StageTimes
from seesaw.engine.model.shapes import NO_WINDOW
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.planning.policy import Mode, Situation

P2, T2 = Layout(pp=2), Layout(tp=2)
PLAN = Plan(P2, T2)


@dataclass
class Fake(Situation):
    """Nobody anywhere, and room for everybody."""

    mode: Mode = field(default_factory=lambda: Mode.steady(T2))
    now_s: float = 0.0
    waiting: int = 0
    waiting_tokens: int = 0
    prefilling: int = 0
    hosted: int = 0
    running: int = 0
    expected_output_tokens: float = 100.0
    prefilled_tokens: int = 0
    device_tokens: int = 100_000
    device_free_tokens: int = 100_000
    host_tokens: int = 1_000_000
    host_free_tokens: int = 1_000_000
    context: int = 0
    left: float = 100.0
    may_surge: bool = True
    may_move: bool = True
    since_s: float = 0.0
    held_s: float = 0.0
    ended: int = 0
    attention_span: int = NO_WINDOW

    @property
    def arrived(self) -> int:
        return self.ended + self.waiting + self.prefilling + self.hosted + self.running

    @property
    def arrived_tokens(self) -> int:
        return self.prefilled_tokens + self.unfilled_tokens

    @property
    def unfilled_tokens(self) -> int:
        return self.waiting_tokens

    def context_tokens(self) -> int:
        return self.context

    def mean_left_tokens(self) -> float:
        return self.left

    def kv_bytes(self, tokens: float) -> float:
        return tokens

    def can_surge(self, mode: Mode) -> bool:
        return self.may_surge

    def can_move(self, mode: Mode) -> bool:
        return self.may_move

    def phase_s(self) -> float:
        return self.since_s

    def held_up_s(self) -> float:
        return self.held_s


def stage(token_s: float, decode_s: float) -> StageTimes:
    """A step takes `token_s` for each token, but at least `decode_s`: so many hide behind the weights."""
    hidden = max(2.0, decode_s / token_s)
    curve = Curve((1.0, hidden, hidden + 10_000), (decode_s, decode_s, decode_s + 10_000 * token_s))
    return StageTimes(
        prefill=curve,
        decode=curve,
        pair_s=0.0,
        context_s=0.0,
    )


def times(
    p2_token_s: float,
    t2_token_s: float,
    p2_decode_s: float = 1e-4,
    t2_decode_s: float = 1e-4,
    transition_s: float = 1.0,
) -> EngineTimes:
    """Of P2->T2. A token passes two stages of P2, each for `p2_token_s`."""
    stages = ((stage(p2_token_s, p2_decode_s),) * 2, (stage(t2_token_s, t2_decode_s),))
    rates = {"swap_out_bytes_per_s": 1e9, "swap_in_bytes_per_s": 1e9}
    return EngineTimes(PLAN, Measured(stages, transition_s=transition_s, **rates))
