"""What a policy is told, in small states of a real scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from seesaw.engine.core import Core
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.planning.policy import Mode, Policy, Situation
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.lifecycle import Lifecycle
from seesaw.engine.scheduler.situation import SchedulerSituation
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.messages import Add
from tests.engine.scheduler.symbolic import SHAPE, SymbolicExecutor, measured

P2, T2, D2 = Layout(pp=2), Layout(tp=2), Layout(dp=2)


class Told(Policy):
    """Does what the test says."""

    def __init__(self, first: Mode) -> None:
        self.mode = self._first = first
        self.admitting = True
        self.ends_surges_at_once = False

    def first_mode(self) -> Mode:
        return self._first

    def next_mode(self, situation: Situation) -> Mode:
        return self._first if self.ends_surges_at_once and situation.mode.is_surge else self.mode

    def admits(self, situation: Situation) -> bool:
        return self.admitting


class Engine:
    """T2 with some other layout, 40 device blocks of 4 tokens, steps of 2 ms."""

    def __init__(self, prefill: str = "P2", **options: Any) -> None:
        defaults = {"block_size": 4, "max_model_len": 64, "num_device_blocks": 40, "num_host_blocks": 100}
        config = EngineConfig(prefill=prefill, decode="T2", max_num_seqs=16, **{**defaults, **options})
        self.policy = Told(Mode.steady(T2))
        self.executor = SymbolicExecutor(config, measured(config))
        self.core = Core(config, self.executor, self.policy)
        self.added = 0

    @property
    def lifecycle(self) -> Lifecycle:
        return self.core._scheduler._lifecycle

    @property
    def situation(self) -> SchedulerSituation:
        self.lifecycle.now = self.executor.now()
        return self.core._scheduler._transitions._situation

    def add(self, prompt: int, output: int) -> None:
        params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        self.core.add(Add(f"r{self.added}", [self.added + 1] * prompt, params))
        self.added += 1

    def start(self, count: int, prompt: int = 15, output: int = 40) -> None:
        """So many decode, and whoever comes from now on waits."""
        for _ in range(count):
            self.add(prompt, output)
        while self.situation.running < count or self.situation.prefilling:
            self.core.turn()
        self.policy.admitting = False

    def held(self) -> int:
        """Device blocks of those that decode, with the next token's."""
        blocks = self.lifecycle.blocks
        return sum(blocks.blocks_for(seq.dispatched + 1) for seq in blocks.replicas[0].rotation)

    @contextmanager
    def host_room(self, blocks: int) -> Iterator[None]:
        """Somebody else has all but so many blocks of the host."""
        host = self.lifecycle.blocks.host
        taken = host.allocate(host.available - blocks)
        yield
        host.release(taken)

    def run(self) -> None:
        self.policy.admitting = True
        while not self.core.is_idle:
            self.core.turn()


def test_where_everybody_is() -> None:
    engine = Engine(max_num_batched_tokens=16)
    situation = engine.situation
    assert (situation.waiting, situation.running, situation.prefilling, situation.hosted) == (0, 0, 0, 0)
    assert situation.device_tokens == situation.device_free_tokens == 160
    assert situation.host_tokens == situation.host_free_tokens == 400
    engine.start(3)
    engine.add(20, 4)
    engine.add(7, 4)
    assert (situation.waiting, situation.waiting_tokens, situation.running) == (2, 27, 3)
    assert situation.prefilled_tokens == 45
    sequences = list(engine.lifecycle.blocks.replicas[0].rotation)
    assert situation.context_tokens() == sum(seq.dispatched for seq in sequences) > 45
    assert situation.mean_left_tokens() == sum(seq.left for seq in sequences) / 3 < 40
    assert situation.device_free_tokens == 160 - 4 * sum(len(seq.device_blocks) for seq in sequences)
    assert situation.kv_bytes(10) == 10 * SHAPE.num_layers * SHAPE.num_kv_heads * 2 * SHAPE.head_dim * 4
    engine.policy.admitting = True
    engine.core.turn()
    assert (situation.prefilling, situation.waiting, situation.waiting_tokens) == (1, 1, 7)  # 16 tokens a step
    assert (situation.arrived, situation.arrived_tokens) == (5, 72)
    assert situation.unfilled_tokens == 72 - situation.prefilled_tokens < 27
    engine.run()
    assert (situation.arrived, situation.arrived_tokens, situation.unfilled_tokens) == (5, 72, 0)


def test_outputs_are_expected_as_long_as_those_that_ended() -> None:
    engine = Engine()
    for output in range(5, 12):
        engine.add(4, output)
    engine.run()
    assert engine.situation.expected_output_tokens == 256  # of too few
    engine.add(4, 12)
    engine.run()
    assert engine.situation.expected_output_tokens == 8.5
    engine.add(4, 40)
    while engine.core.stats().generation_tokens < 68 + 30:
        engine.core.turn()
    assert engine.situation.expected_output_tokens >= 98 / 8  # that one will be longer than all others is seen already
    engine.run()
    assert engine.situation.expected_output_tokens == 108 / 9


def test_no_output_is_expected_to_be_longer_than_it_may_get() -> None:
    engine = Engine()
    for output in (10, 20, 30):
        engine.add(4, output)
    assert engine.situation.expected_output_tokens == 20
    engine.core.turn()
    assert engine.situation.expected_output_tokens == 20
    engine.run()
    assert engine.situation.expected_output_tokens == 256


def test_a_surge_needs_room_for_its_first_prompt_on_the_host() -> None:
    engine = Engine()
    engine.start(3)
    surge = Mode.surge(P2, T2)
    assert not engine.situation.can_surge(surge)  # nobody waits
    engine.add(30, 4)
    for blocks, can in ((0, False), (7, False), (8, True), (100, True)):
        with engine.host_room(blocks):
            assert engine.situation.can_surge(surge) is can, blocks
    engine.run()


def test_a_surge_needs_room_on_the_host_for_those_who_make_it_room() -> None:
    """Eight hold at least 32 of 40 blocks; a prompt of 12 blocks needs one of them or two away."""
    engine = Engine()
    engine.start(8)
    engine.add(47, 4)
    surge = Mode.surge(P2, T2)
    blocks = engine.lifecycle.blocks
    free = blocks.replicas[0].pool.available
    assert free < 12
    youngest = sorted(blocks.replicas[0].rotation, key=lambda seq: -seq.arrival)
    leaving = away = 0
    while free + leaving < 12:
        leaving += len(youngest[away].device_blocks)
        away += 1
    on_the_host = sum(blocks.blocks_for(seq.dispatched + 1) for seq in youngest[:away])
    with engine.host_room(12 + on_the_host - 1):
        assert not engine.situation.can_surge(surge)
    with engine.host_room(12 + on_the_host):
        assert engine.situation.can_surge(surge)
        engine.policy.mode = surge
        while engine.situation.mode != surge or engine.situation.waiting:
            engine.core.turn()  # so it was true
        assert engine.situation.hosted <= away + 1  # and the prompt
    engine.policy.mode = Mode.steady(T2)
    engine.run()
    assert engine.core.stats().generation_tokens == 8 * 40 + 4


def test_a_surge_on_other_replicas_needs_room_on_the_host_for_all() -> None:
    engine = Engine("D2")
    engine.start(3)
    engine.add(30, 4)
    with engine.host_room(8 + engine.held() - 1):
        assert not engine.situation.can_surge(Mode.surge(D2, T2))
    with engine.host_room(8 + engine.held()):
        assert engine.situation.can_surge(Mode.surge(D2, T2))
    engine.run()


def test_a_surge_that_computed_nothing_is_not_begun_again_before_a_sequence_ended() -> None:
    engine = Engine()
    engine.start(3)
    engine.add(30, 4)
    surge, situation = Mode.surge(P2, T2), engine.situation
    assert situation.can_surge(surge)
    engine.policy.mode, engine.policy.ends_surges_at_once = surge, True
    while engine.executor.transitions < 2:
        engine.core.turn()
    engine.policy.mode = Mode.steady(T2)
    while situation.mode.is_surge:
        engine.core.turn()
    assert not situation.can_surge(surge), "although there is as much room as before"
    ended = engine.lifecycle.counters.finished
    while engine.lifecycle.counters.finished == ended:
        engine.core.turn()
    assert situation.can_surge(surge)
    engine.run()


@pytest.mark.parametrize(("mode", "stays"), [(Mode.steady(P2), False), (Mode.surge(P2, T2), True)])
def test_a_move_needs_room_on_the_host_for_all_that_it_takes_along(mode: Mode, stays: bool) -> None:
    engine = Engine()
    assert engine.situation.can_move(mode)
    engine.start(5)
    for blocks, can in ((0, stays), (engine.held() - 1, stays), (engine.held(), True)):
        with engine.host_room(blocks):
            assert engine.situation.can_move(mode) is can, blocks
    engine.run()


def test_times_count_from_a_modes_first_step() -> None:
    engine = Engine()
    situation = engine.situation
    assert situation.phase_s() == situation.held_up_s() == 0
    engine.start(2)
    assert engine.situation.phase_s() == pytest.approx(engine.executor.now())
    arrived_s = engine.executor.now()
    engine.add(9, 4)
    for _ in range(5):
        engine.core.turn()
    assert engine.situation.held_up_s() == pytest.approx(engine.executor.now() - arrived_s)
    assert engine.executor.now() > arrived_s
    engine.policy.mode = surge = Mode.surge(P2, T2)
    while situation.mode != surge:
        engine.core.turn()
    assert engine.situation.phase_s() < 0.5, "the transition's half second is none of it"
    engine.policy.mode = Mode.steady(T2)
    engine.run()
    assert engine.situation.held_up_s() == 0
