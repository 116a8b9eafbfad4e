"""The policy by cost, on situations and times made up so that the right answer is plain."""

from __future__ import annotations

from dataclasses import replace

import pytest

from seesaw.engine.cost.engine_times import EngineTimes
from seesaw.engine.cost.times import Measured
from seesaw.engine.planning.cost import CostPolicy
from seesaw.engine.planning.policy import Mode, Phase
from seesaw.engine.values.config import EngineConfig
from tests.engine.planning.situations import P2, PLAN, T2, Fake, stage, times

CONFIG = EngineConfig(prefill="P2", decode="T2", max_num_seqs=256, max_num_batched_tokens=4096, max_stall_s=60.0)
STEADY, SURGE = Mode.steady(T2), Mode.surge(P2, T2)


def decide(situation: Fake, measured: EngineTimes) -> Mode:
    return CostPolicy(PLAN, measured, CONFIG).next_mode(situation)


def backlog(tokens: int, **changes: object) -> Fake:
    return replace(Fake(waiting=tokens // 200, waiting_tokens=tokens), **changes)  # type: ignore[arg-type]


def test_it_starts_where_it_decodes() -> None:
    assert CostPolicy(PLAN, times(1e-4, 2e-4), CONFIG).first_mode() == STEADY
    assert decide(Fake(), times(1e-4, 2e-4)) == STEADY


@pytest.mark.parametrize(("tokens", "mode"), [(10_000, STEADY), (24_000, STEADY), (30_000, SURGE), (200_000, SURGE)])
def test_a_surge_must_save_quarter_more_than_two_transitions(tokens: int, mode: Mode) -> None:
    """A token saves 0.1 ms in P2, so that 20,000 pay for two transitions of a second, and 25,000 for a quarter more."""
    assert decide(backlog(tokens), times(1e-4, 2e-4)) == mode


@pytest.mark.parametrize(
    ("took_s", "tokens", "again"), [(4.0, 40_000, SURGE), (11.0, 40_000, STEADY), (11.0, 90_000, SURGE)]
)
def test_a_surge_that_took_longer_than_foreseen_makes_the_next_one_dearer(
    took_s: float, tokens: int, again: Mode
) -> None:
    """Of 40,000 tokens, which save 4 s in P2 at the price of 2: the first was to take 6 s, and what it took
    beyond that is expected of the next."""
    policy = CostPolicy(PLAN, times(1e-4, 2e-4), CONFIG)
    assert policy.next_mode(backlog(40_000)) == SURGE
    assert policy.next_mode(replace(backlog(0), mode=SURGE, now_s=took_s - 1.0, prefilled_tokens=40_000)) == STEADY
    after = {"now_s": took_s, "prefilled_tokens": 40_000, "ended": 200}
    assert policy.next_mode(backlog(0, running=1, context=200, **after)) == STEADY
    assert policy.next_mode(backlog(tokens, **(after | {"now_s": took_s + 60.0}))) == again


def test_there_is_none_where_prompts_are_no_faster_elsewhere() -> None:
    for p2_token_s in (2e-4, 3e-4, 1.98e-4):
        assert decide(backlog(900_000), times(p2_token_s, 2e-4)) == STEADY


def test_free_transitions_make_short_surges_pay() -> None:
    assert decide(backlog(10_000), times(1e-4, 2e-4, transition_s=0.0)) == SURGE


def test_what_those_who_stand_still_would_get_done_counts() -> None:
    """Beside eighty rows, whose step takes as long as reading all weights, prompts cost little more here."""
    slow_steps = times(1e-4, 1.3e-4, p2_decode_s=0.05, t2_decode_s=0.1, transition_s=0.3)
    busy = backlog(60_000, running=80, context=80 * 300, device_free_tokens=0)
    assert decide(backlog(60_000), slow_steps) == SURGE
    assert decide(busy, slow_steps) == STEADY


def test_the_host_must_have_room_for_most_of_what_waits() -> None:
    assert decide(backlog(100_000, host_free_tokens=60_000), times(1e-4, 2e-4)) == STEADY
    assert decide(backlog(100_000, host_free_tokens=80_000), times(1e-4, 2e-4)) == SURGE
    small = backlog(100_000, host_tokens=50_000, host_free_tokens=40_000)  # most of what it can ever hold
    assert decide(small, times(1e-4, 2e-4)) == SURGE
    assert decide(backlog(100_000, may_surge=False), times(1e-4, 2e-4)) == STEADY


def test_a_surge_waits_until_the_last_one_is_worked_off() -> None:
    assert decide(backlog(100_000, hosted=1), times(1e-4, 2e-4)) == STEADY


def surging(tokens: int = 0, **changes: object) -> Fake:
    return backlog(tokens, **({"mode": SURGE, "running": 10, "context": 1000} | changes))


def test_a_surge_goes_on_while_it_is_the_better_place_for_the_rest() -> None:
    measured = times(1e-4, 2e-4)
    assert decide(surging(50_000), measured) == SURGE
    assert decide(surging(prefilling=3), measured) == SURGE
    assert decide(surging(), measured) == STEADY
    assert decide(surging(50_000, may_surge=False), measured) == STEADY  # the host is full
    # So few tokens pass two stages one after another in no less time than they add to a step here.
    assert decide(surging(200), times(1e-4, 1.5e-4, p2_decode_s=0.1, t2_decode_s=0.1)) == STEADY


def test_nobody_stands_still_for_longer_than_allowed() -> None:
    late = surging(500_000, since_s=61.0, prefilling=2)
    assert decide(late, times(1e-4, 2e-4)) == STEADY
    assert decide(replace(late, running=0), times(1e-4, 2e-4)) == SURGE  # there is nobody


def test_the_last_few_go_where_they_end_much_sooner() -> None:
    few = Fake(mode=Mode.steady(P2), running=3, context=900)
    assert decide(few, times(1e-4, 1e-4, p2_decode_s=0.03, t2_decode_s=0.02)) == STEADY
    assert decide(replace(few, may_move=False), times(1e-4, 1e-4, 0.03, 0.02)) == Mode.steady(P2)
    assert decide(replace(few, left=10.0), times(1e-4, 1e-4, 0.03, 0.02)) == Mode.steady(P2)  # over before it pays
    assert decide(replace(few, waiting=1, waiting_tokens=9), times(1e-4, 1e-4, 0.03, 0.02)) == Mode.steady(P2)


def test_a_tail_layout_is_called_so() -> None:
    config = replace(CONFIG, tail="P2", prefill="T2")
    policy = CostPolicy(config.plan, EngineTimes(config.plan, times_of_two()), config)
    few = Fake(running=2, context=100, left=500.0)
    assert policy.next_mode(few) == Mode(Phase.TAIL, P2, P2)


def times_of_two() -> Measured:
    """Of T2 with a tail in P2, which is five times as fast with few sequences."""
    return Measured(((stage(1e-4, 0.1),), (stage(1e-4, 0.01),) * 2), transition_s=0.1)


def looks(measured: EngineTimes, seconds: float) -> list[Mode]:
    """A steady load, looked at every tenth of a second: fifty decode, and ten a second end and come."""
    policy, seen, mode = CostPolicy(PLAN, measured, CONFIG), [], STEADY
    for look in range(int(seconds * 10)):
        situation = Fake(mode=mode, now_s=look / 10, running=50, context=50 * 300, waiting=1, waiting_tokens=5)
        mode = policy.next_mode(replace(situation, ended=look, prefilled_tokens=5 * look))
        seen.append(mode)
    return seen


def test_a_place_that_is_missed_for_long_is_moved_to() -> None:
    """Nearly half of those who decode would have ended: of what each has decoded meanwhile, 3 s were too long."""
    modes = looks(times(1e-4, 1e-4, p2_decode_s=0.01, t2_decode_s=0.05), 30.0)
    assert modes[20] == STEADY and modes[-1] == Mode.steady(P2)


def test_a_passing_advantage_moves_nobody() -> None:
    assert set(looks(times(1e-4, 1e-4, p2_decode_s=0.0245, t2_decode_s=0.05), 60.0)) == {STEADY}


def test_prompts_alone_can_be_missed_elsewhere_too() -> None:
    """One request at a time, in and out at once: nobody decodes when it is looked, and nothing ever waits."""
    policy, mode = CostPolicy(PLAN, times(1e-5, 1e-3), CONFIG), STEADY
    for look in range(200):
        mode = policy.next_mode(Fake(mode=mode, now_s=look / 10, prefilling=1, prefilled_tokens=100 * look, ended=look))
    assert mode == Mode.steady(P2)


def test_time_without_work_is_not_missed() -> None:
    policy = CostPolicy(PLAN, times(1e-4, 1e-4, p2_decode_s=0.01, t2_decode_s=0.05), CONFIG)
    for look in range(100):
        assert policy.next_mode(Fake(now_s=100.0 * look)) == STEADY
        assert policy.next_mode(Fake(now_s=100.0 * look + 99, running=5, context=500, waiting=1)) == STEADY


def stream(
    measured: EngineTimes, per_s: int, tokens: int = 2000, device_tokens: int = 100_000, first: Mode = STEADY
) -> list[Mode]:
    """Requests that come one by one and wait, while twenty decode: until the mode changes."""
    policy, seen = CostPolicy(PLAN, measured, CONFIG), [first]
    for look in range(1, 20 * per_s):
        crowd = Fake(first, look / per_s, look, waiting_tokens=tokens * look, running=20, context=20 * 300)
        seen.append(policy.next_mode(replace(crowd, prefilled_tokens=20 * 300, device_tokens=device_tokens)))
        if seen[-1] != first:
            break
    return seen


def test_those_who_keep_coming_are_served_where_that_can_be_done_at_once() -> None:
    """Four prompts of 2,000 tokens a second: two seconds of work in T2, 0.4 in P2."""
    modes = stream(times(5e-5, 2.5e-4), per_s=4)
    assert modes[-1] == Mode.steady(P2) and len(modes) < 4 * 6


def test_those_who_come_faster_than_they_can_be_served_anywhere_wait_for_surges() -> None:
    """There is room for twenty, whose tokens take six times as long in P2: what surges save is worth a stall."""
    slow_decoding = times(5e-5, 2.5e-4, p2_decode_s=0.06, t2_decode_s=0.02)
    assert stream(slow_decoding, per_s=12, device_tokens=20 * 300)[-1] == SURGE


def test_what_comes_at_once_is_no_stream() -> None:
    assert decide(backlog(100_000, running=20, context=20 * 300), times(5e-5, 2.5e-4)) == SURGE


def test_what_comes_meanwhile_is_a_reason_to_stay_there_but_none_for_a_small_surge() -> None:
    def pays_at_once(measured: EngineTimes, device_tokens: int, tokens: int = 2000) -> int:
        """As many as must wait if no more come."""
        crowd = Fake(running=20, context=20 * 300, device_tokens=device_tokens)
        tries = (replace(crowd, waiting=count, waiting_tokens=tokens * count) for count in range(1, 100))
        return next(each.waiting for each in tries if decide(each, measured) == SURGE)

    keeps_up = times(5e-5, 2.5e-4)
    assert len(stream(keeps_up, per_s=8, tokens=500)) - 1 < pays_at_once(keeps_up, 100_000, tokens=500)
    overloaded = times(5e-5, 2.5e-4, p2_decode_s=0.06, t2_decode_s=0.02)
    assert len(stream(overloaded, per_s=12, device_tokens=20 * 300)) - 1 == pays_at_once(overloaded, 20 * 300)


def test_surges_begin_again_where_more_come_than_one_layout_can_serve() -> None:
    """For another home, if all are done sooner so: here for twenty, whose tokens take six times as long in P2."""
    slow_decoding = times(5e-5, 2.5e-4, p2_decode_s=0.06, t2_decode_s=0.02)
    there = Mode.steady(P2)
    assert stream(slow_decoding, per_s=12, device_tokens=20 * 300, first=there)[-1] == SURGE
    assert stream(slow_decoding, per_s=1, device_tokens=20 * 300, first=there)[-1] != SURGE
    same_decoding = times(5e-5, 2.5e-4, p2_decode_s=0.01, t2_decode_s=0.02)
    assert stream(same_decoding, per_s=24, device_tokens=20 * 300, first=there)[-1] == there


def test_nobody_moves_right_behind_a_surge() -> None:
    """All that decode now end sooner here, wherever their prompts would have been read."""
    policy = CostPolicy(PLAN, times(5e-5, 2.5e-4, p2_decode_s=0.03, t2_decode_s=0.02), CONFIG)
    mode, now_s = SURGE, 0.0
    for look in range(400):
        now_s = look / 10
        mode = SURGE if look < 100 else STEADY
        some = Fake(mode=mode, now_s=now_s, running=40, context=40 * 300, waiting=1, waiting_tokens=2000)
        after = policy.next_mode(replace(some, ended=0, prefilled_tokens=40 * 300))
        assert after in (SURGE, STEADY)
