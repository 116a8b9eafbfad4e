"""Who has the blocks: a decode phase fills the pool, a surge makes its own room, and nobody waits for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest

from seesaw.engine.core import Core
from seesaw.engine.parallel.layout import Plan
from seesaw.engine.planning.policy import Mode, Policy, Situation
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import Command, Forward, Swap
from seesaw.engine.wire.messages import Add
from tests.engine.scheduler.symbolic import SymbolicExecutor, measured


def engine(**options: Any) -> tuple[Core, SymbolicExecutor]:
    defaults = {
        "prefill": "P2",
        "decode": "T2",
        "policy": "paper",
        "surge_min_tokens": 0,
        "block_size": 4,
        "max_model_len": 64,
        "num_device_blocks": 400,
        "num_host_blocks": 2000,
        "max_num_seqs": 256,
        "max_num_batched_tokens": 128,
    }
    config = EngineConfig(**{**defaults, **options})
    executor = SymbolicExecutor(config, measured(config))
    return Core(config, executor), executor


def add(core: Core, name: str, prompt: int, output: int, seed: int = 0) -> None:
    rng = random.Random(f"{name} {seed}")
    tokens = [rng.randrange(1000) for _ in range(prompt)]
    core.add(Add(name, tokens, SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)))


@pytest.mark.parametrize("options", [{}, {"num_device_blocks": 150}, {"max_num_seqs": 20}, {"num_host_blocks": 300}])
def test_a_decode_phase_fills_the_pool(options: dict[str, Any]) -> None:
    """While somebody is left on the host and no copy is under way, 97 % of the blocks are used, or the next one on the
    host does not fit into the rest, or as many decode as may."""
    core, _ = engine(**options)
    for i in range(300):
        add(core, f"r{i}", prompt=8 + i % 24, output=8 + i % 17)
    lifecycle = core._scheduler._lifecycle
    queues, [replica] = lifecycle.queues, lifecycle.blocks.replicas
    looked = 0
    while not core.is_idle:
        core.turn()
        mode = core._scheduler._transitions.mode
        moving = queues.count(SeqState.SWAPPING_IN, SeqState.SWAPPING_OUT)
        if mode.is_surge or core._scheduler._transitions.changing or moving or not queues.count(SeqState.HOSTED):
            continue
        looked += 1
        first = queues.first(SeqState.HOSTED)
        assert first is not None
        needed = lifecycle.blocks.blocks_for(max(first.prefill_end, first.dispatched + 1))
        is_full = replica.pool.used >= 0.97 * replica.pool.total or needed > lifecycle.blocks.room(replica, False)
        assert is_full or queues.count(SeqState.RUNNING, SeqState.PREFILL) >= lifecycle.config.max_num_seqs
        kept = max(replica.rotation.num_full, 0.03 * replica.pool.total + 1)  # for those that grow
        assert lifecycle.blocks.room(replica, False) >= replica.pool.available - kept
    assert looked > 10


class Watched(SymbolicExecutor):
    """Notes how many sequences each step names."""

    sizes: list[int]

    def submit(self, command: Command) -> None:
        if isinstance(command, Forward):
            self.sizes.append(command.num_sequences)
        super().submit(command)


@pytest.mark.parametrize("options", [{}, {"prefill": "T2", "policy": "cost", "num_host_blocks": 0}])
def test_where_many_need_a_block_at_once_as_many_leave_as_it_takes(options: dict[str, Any]) -> None:
    """All of one length need their next block in the same step: one leaver after another kept the rest waiting."""
    config = engine(**{"num_device_blocks": 200, **options})[0]._scheduler._config
    executor = Watched(config, measured(config))
    executor.sizes = []
    core = Core(config, executor)
    for i in range(64):
        add(core, f"r{i}", prompt=6, output=34)  # ten blocks each in the end
    queues, shares = core._scheduler._lifecycle.queues, []
    while not core.is_idle:
        sent = len(executor.sizes)
        core.turn()
        running = queues.count(SeqState.RUNNING)
        shares += [size / running for size in executor.sizes[sent:] if queues.count(SeqState.HOSTED, SeqState.WAITING)]
    assert len(shares) > 20
    assert sum(shares) / len(shares) > 0.6
    assert core.stats().preemptions < 3 * 64


class Leaving(SymbolicExecutor):
    """Notes who leaves for the host, by device blocks."""

    swapped_out: list[list[int]]

    def submit(self, command: Command) -> None:
        if isinstance(command, Swap) and command.to_host:
            self.swapped_out.append(command.device_blocks)
        super().submit(command)


def test_a_surge_sends_the_youngest_away_and_no_more_than_it_needs() -> None:
    config = engine()[0]._scheduler._config
    executor = Leaving(config, measured(config))
    executor.swapped_out = []
    core = Core(config, executor)
    for i in range(40):
        add(core, f"old{i}", prompt=30, output=33)
    lifecycle = core._scheduler._lifecycle
    while lifecycle.queues.count(SeqState.RUNNING) < 40:
        core.turn()
    blocks = {tuple(seq.device_blocks): seq.arrival for seq in lifecycle.queues.list(SeqState.RUNNING)}
    executor.swapped_out.clear()
    add(core, "new", prompt=50, output=2)
    while not core._scheduler._transitions.mode.is_surge:
        core.turn()
        blocks |= {tuple(seq.device_blocks): seq.arrival for seq in lifecycle.queues.list(SeqState.RUNNING)}
    left = [
        arrival for gone in executor.swapped_out for held, arrival in blocks.items() if held[: len(gone)] == tuple(gone)
    ]
    assert not left or sorted(set(left)) == list(range(min(left), 40)), "the youngest leave"
    needed = lifecycle.blocks.blocks_for(50)
    assert sum(map(len, executor.swapped_out)) < needed + 16, "and no more of them than make room"
    while not core.is_idle:
        core.turn()


def test_a_pool_of_one_longest_sequence_serves_all() -> None:
    for policy in ("paper", "cost"):
        core, _ = engine(num_device_blocks=16, num_host_blocks=16, policy=policy)
        for i in range(12):
            add(core, f"r{i}", prompt=20 + i, output=30)
        while not core.is_idle:
            core.turn()
        assert core.stats().generation_tokens == 12 * 30


class SurgeOnce(Policy):
    """Prefills what waits at first in one surge, and then decodes for good."""

    def __init__(self, plan: Plan) -> None:
        self._steady, self._surge = Mode.steady(plan.decode), Mode.surge(plan.prefill, plan.decode)
        self._begun = False

    def first_mode(self) -> Mode:
        return self._steady

    def next_mode(self, situation: Situation) -> Mode:
        if situation.mode.is_surge:
            return self._surge if situation.waiting or situation.prefilling else self._steady
        if situation.waiting and not self._begun:
            self._begun = True
            return self._surge
        return self._steady

    def admits(self, situation: Situation) -> bool:
        return True


def test_a_prompt_that_waits_too_long_goes_before_those_on_the_host() -> None:
    first_tokens: dict[float, float] = {}
    for max_wait_s in (0.02, 1e6):
        config = engine(num_device_blocks=34, max_wait_s=max_wait_s)[0]._scheduler._config
        executor = SymbolicExecutor(config, measured(config))
        core = Core(config, executor, SurgeOnce(config.plan))
        for i in range(8):
            add(core, f"r{i}", prompt=30, output=33)
        while core.stats().requests_hosted + core.stats().requests_running < 8 or core.stats().phase != "decode":
            core.turn()
        arrived_s = executor.now()
        add(core, "late", prompt=4, output=2)
        finished = []
        while not core.is_idle:
            for output in core.turn():
                if output.id == "late":
                    first_tokens.setdefault(max_wait_s, executor.now() - arrived_s)
                if output.finish_reason is not None:
                    finished.append(output.id)
        assert len(finished) == 9
    assert first_tokens[0.02] < 0.6 * first_tokens[1e6]


def test_a_long_prompt_that_waits_too_long_gets_the_room_that_short_ones_leave() -> None:
    """Those on the host are short and end one by one: each would fit where the last one was, the prompt never."""
    config = engine(num_device_blocks=40, max_wait_s=0.02)[0]._scheduler._config
    executor = SymbolicExecutor(config, measured(config))
    core = Core(config, executor, SurgeOnce(config.plan))
    for i in range(100):
        add(core, f"r{i}", prompt=8, output=4 + i % 13)
    while core.stats().requests_hosted + core.stats().requests_running < 100 or core.stats().phase != "decode":
        core.turn()
    arrived_s = executor.now()
    add(core, "late", prompt=60, output=2)
    while not any(output.id == "late" for output in core.turn()):
        pass
    first_token_s = executor.now() - arrived_s
    assert core.stats().requests_hosted > 50
    while not core.is_idle:
        core.turn()
    assert first_token_s < 0.25 * (executor.now() - arrived_s)
    assert core.stats().generation_tokens == sum(4 + i % 13 for i in range(100)) + 2
