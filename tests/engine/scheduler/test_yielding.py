"""Requests that take what others leave: these hardly notice them, in virtual time."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from seesaw.engine.core import Core
from seesaw.engine.cost.estimate import constant
from seesaw.engine.executor.simulated import SimulatedExecutor
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import RequestError
from seesaw.engine.wire.messages import LAST, Add
from tests.engine.scheduler.test_prefix_cache import Engine
from tests.engine.scheduler.test_scheduler import PLANS, prompt_of

STEP_S = 0.02
QUIET_S, PER_S, COUNT = 5.0, 10.0, 100  # of the others: when the first comes, how many come in a second, and in all


def first_tokens_s(num_rows: int, output_tokens: int, **options: Any) -> list[float]:
    """How long each of the others waits for its first token, sorted, while so many rows are there at all times."""
    config = EngineConfig(executor="simulated", max_num_seqs=64, max_model_len=1024, **options)
    executor = SimulatedExecutor(config, times=constant(config.plan, STEP_S))
    core, rng = Core(config, executor), random.Random(0)
    arrivals_s = list(itertools.accumulate((rng.expovariate(PER_S) for _ in range(COUNT)), initial=QUIET_S))[:0:-1]
    came_s: dict[str, float] = {}
    waits_s: dict[str, float] = {}
    rows = 0
    while len(waits_s) < COUNT:
        while rows < num_rows:
            rows += 1
            prompt = [7] * rng.randint(50, 450)
            params = SamplingParams(max_tokens=rng.randint(1, 2 * output_tokens), ignore_eos=True)
            core.add(Add(f"row {rng.random()}", [rng.randrange(1000), *prompt], params, LAST))
        if core.is_idle and arrivals_s:
            executor.sleep_until(arrivals_s[-1])
        while arrivals_s and arrivals_s[-1] <= executor.now():
            name = str(len(came_s))
            came_s[name] = arrivals_s.pop()
            core.add(Add(name, [len(came_s), *[9] * 200], SamplingParams(max_tokens=30, ignore_eos=True)))
        for output in core.turn():
            if output.id in came_s:
                waits_s.setdefault(output.id, executor.now() - came_s[output.id])
            else:
                rows -= output.finish_reason is not None
    return sorted(waits_s.values())


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize(
    ("blocks", "host_blocks", "output_tokens"),
    [(2000, 0, 50), (700, 0, 50), (700, 700, 50), (2000, 0, 400)],  # with room for all, with less, for long outputs
)
def test_others_wait_no_longer_than_alone(policy: Any, blocks: int, host_blocks: int, output_tokens: int) -> None:
    pools: dict[str, Any] = {"num_device_blocks": blocks, "scheduling_policy": policy}
    if host_blocks:
        pools |= {"prefill": "P2", "decode": "T2", "num_host_blocks": host_blocks, "surge_min_tokens": -1}
    alone_s = first_tokens_s(0, output_tokens, **pools)
    beside_s = first_tokens_s(128, output_tokens, **pools)
    assert beside_s[98] <= 1.5 * alone_s[98]


@pytest.mark.parametrize("plan", PLANS)
def test_who_gives_way_loses_nothing(plan: tuple[str, str, str]) -> None:
    """Whether it goes to the host, or is computed anew."""
    engine = Engine(*plan, num_device_blocks=40, num_host_blocks=40)
    rng = random.Random(repr(plan))
    for index in range(12):
        engine.add(f"row {index}", prompt_of(rng, 20), max_tokens=20, priority=LAST)
    engine.run(turns=30)
    for index in range(4):
        engine.add(f"other {index}", prompt_of(rng, 30), max_tokens=5)
        engine.run(turns=10)
    engine.run()


def test_anybody_may_be_last_and_only_that_by_default() -> None:
    core = Core(config := EngineConfig(executor="simulated"), SimulatedExecutor(config))
    core.add(Add("last", [1], SamplingParams(), LAST))
    with pytest.raises(RequestError, match="priority"):
        core.add(Add("first", [1], SamplingParams(), -1))


def test_no_more_give_way_than_must() -> None:
    """Continuations of one prompt share its blocks, and those that wait are more than start at once."""
    engine = Engine("T1", num_device_blocks=200, num_host_blocks=0, max_num_seqs=24, max_num_batched_tokens=256)
    rng = random.Random(0)
    for index in range(30):
        engine.add(f"row {index}", prompt_of(rng, 24), max_tokens=16, priority=LAST)
    engine.run(turns=12)
    before = engine.core.stats()
    engine.add("many", prompt_of(rng, 97), n=6)
    engine.run(turns=6)
    after = engine.core.stats()
    assert 0 < after.preemptions - before.preemptions <= 10 < before.requests_running
    engine.run()


def test_who_gave_way_does_not_come_back_before_those_it_gave_way_to() -> None:
    """The host cannot take both, so that no surge can begin: the waiting one starts where the other decoded."""
    pools: dict[str, Any] = {"block_size": 1, "num_device_blocks": 100, "num_host_blocks": 96, "surge_min_tokens": 30}
    engine = Engine("P2", "T2", **pools, max_model_len=96)
    engine.add("row", prompt_of(random.Random(0), 20), max_tokens=60, priority=LAST)
    engine.run(turns=10)
    engine.add("other", prompt_of(random.Random(1), 80), max_tokens=10)
    engine.run(turns=1000)
    assert engine.core.is_idle
    assert engine.core.stats().preemptions == 1
    engine.run()
