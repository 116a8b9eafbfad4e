"""The paper's policy: full and empty pools decide, and bounds."""

from __future__ import annotations

from dataclasses import replace

from seesaw.engine.planning.paper import PaperPolicy
from seesaw.engine.planning.policy import Mode, Phase
from seesaw.engine.values.config import EngineConfig
from tests.engine.planning.situations import P2, PLAN, T2, Fake

CONFIG = EngineConfig(prefill="P2", decode="T2", surge_min_tokens=100, max_stall_s=10.0, max_wait_s=20.0)
POLICY = PaperPolicy(PLAN, CONFIG)
STEADY, SURGE = Mode.steady(T2), Mode.surge(P2, T2)
QUEUE = Fake(waiting=5, waiting_tokens=500)


def test_it_surges_once_the_host_is_empty() -> None:
    assert POLICY.first_mode() == STEADY
    assert POLICY.next_mode(QUEUE) == SURGE
    assert POLICY.next_mode(replace(QUEUE, hosted=1)) == STEADY
    assert POLICY.next_mode(replace(QUEUE, hosted=1, held_s=21.0)) == SURGE  # somebody waits for too long
    assert POLICY.next_mode(replace(QUEUE, may_surge=False)) == STEADY
    assert POLICY.next_mode(replace(QUEUE, waiting_tokens=99)) == STEADY


def test_few_prompts_are_prefilled_where_others_decode() -> None:
    assert POLICY.admits(replace(QUEUE, waiting_tokens=99)) and not POLICY.admits(QUEUE)
    assert POLICY.admits(replace(QUEUE, may_surge=False))  # room on the host comes only when running ones end


def test_a_surge_ends_when_the_host_is_full_or_nobody_waits() -> None:
    surging = replace(QUEUE, mode=SURGE, running=2)
    assert POLICY.next_mode(surging) == SURGE
    assert POLICY.next_mode(replace(surging, may_surge=False)) == STEADY
    assert POLICY.next_mode(replace(surging, may_surge=False, prefilling=1)) == SURGE
    assert POLICY.next_mode(replace(surging, waiting=0)) == STEADY
    assert POLICY.next_mode(replace(surging, since_s=11.0, prefilling=1)) == STEADY


def test_the_tail_is_for_the_last_few() -> None:
    config = EngineConfig(prefill="P2", decode="T2", tail="P2", tail_max_seqs=3)
    policy = PaperPolicy(config.plan, config)
    tail = Mode.steady(P2, Phase.TAIL)
    assert policy.next_mode(Fake(running=3)) == tail
    assert policy.next_mode(Fake(running=4)) == STEADY
    assert policy.next_mode(Fake(running=3, may_move=False)) == STEADY
    assert policy.next_mode(Fake(running=3, mode=tail)) == tail and not policy.admits(Fake(mode=tail))
    assert policy.next_mode(Fake(running=3, mode=tail, waiting=1, waiting_tokens=5)) == STEADY
