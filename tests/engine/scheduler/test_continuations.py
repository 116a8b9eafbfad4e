"""Continuations of one request cost what they add, not what their prompt has: counted, for a flood of them comes."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from seesaw.engine.kv.blocks import BlockPool
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler import batcher
from seesaw.engine.scheduler.prefix_cache import PrefixCache
from seesaw.engine.wire.commands import Command, Forward
from seesaw.engine.wire.messages import Add
from tests.engine.scheduler.test_prefix_cache import STEADY, Engine
from tests.engine.scheduler.test_scheduler import PLANS, prompt_of

MANY = 100
PROMPT = prompt_of(random.Random(0), 97)  # 24 full blocks, and one that each continuation has for itself


def make_engine(*plan: str, **changes: object) -> Engine:
    return Engine(*plan, max_num_seqs=MANY + 8, num_device_blocks=1000, max_num_batched_tokens=512, **STEADY, **changes)


def give_up(engine: Engine, name: str, index: int) -> None:
    engine.core.abort(name, index)
    del engine._wanted[name, index]


def end(engine: Engine) -> None:
    """All that was not given up has its tokens."""
    while not engine.core.is_idle:
        engine.run(turns=100)
    engine.outputs = [output for output in engine.outputs if (output.id, output.index) in engine._wanted]
    engine.run()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of what is done block by block."""
    calls: Counter[str] = Counter()

    def count(owner: type, name: str) -> None:
        method = getattr(owner, name)

        def counting(*args: object) -> object:
            calls[name] += 1
            return method(*args)

        monkeypatch.setattr(owner, name, counting)

    for name in ("find", "share"):
        count(BlockPool, name)
    for name in ("on_device", "on_host"):
        count(PrefixCache, name)
    return calls


def test_a_prompt_is_looked_up_once(counted: Counter[str]) -> None:
    engine = make_engine("T1")
    engine.add("many", PROMPT, n=MANY)
    engine.run()
    assert engine.prefilled == len(PROMPT) + MANY - 1, "each but the first computes the last token alone"
    # Once for the first one, once to see that the others have to wait for it.
    assert counted["on_device"] <= 2 + len(PROMPT) // 512 and counted["on_host"] == 1
    assert counted["share"] == 24, "the blocks are held once for all of them"
    assert counted["find"] < 200


def test_what_is_found_once_is_saved_once(counted: Counter[str]) -> None:
    engine = make_engine("P2", "T2")
    for name in ("first", "second"):
        engine.add(name, PROMPT, n=MANY)
        engine.run()
    assert engine.found("second") == 96
    assert counted["find"] < 400


def test_giving_up_many_that_wait_looks_at_no_block(counted: Counter[str]) -> None:
    engine = make_engine("T1")
    engine.add("runs", PROMPT, max_tokens=20, n=1)
    engine.run(turns=3)
    for index in range(5):
        engine.core.add(Add(f"left {index}", PROMPT, SamplingParams(n=MANY)))
    before = counted.copy()
    for index in range(5):
        assert engine.core.abort(f"left {index}") == MANY
        assert engine.core.abort(f"left {index}") == 0
    assert counted == before
    engine.run()


def test_blocks_outlast_whoever_brought_them() -> None:
    """The others go on with them, and others that come borrow them of one of these."""
    engine = make_engine("T1")
    engine.add("many", PROMPT, max_tokens=30, n=40)
    engine.run(turns=6)
    give_up(engine, "many", 0)
    end(engine)


@pytest.mark.parametrize("plan", PLANS)
def test_any_of_them_may_be_given_up_at_any_time(plan: tuple[str, str, str]) -> None:
    """Also where there is not room for all of them, and where they move."""
    rng = random.Random(repr(plan))
    for policy in (STEADY, {}):
        engine = Engine(*plan, num_device_blocks=60, num_host_blocks=60, max_num_seqs=12, **policy)
        for index in range(4):
            engine.add(f"r{index}", prompt_of(random.Random(index % 2), 23 + index), max_tokens=12, n=6)
        given_up = rng.sample(sorted(engine._wanted), 10)
        for name, index in given_up:
            engine.run(turns=rng.randint(0, 6))
            give_up(engine, name, index)
        end(engine)


def test_others_go_on_while_many_continuations_start() -> None:
    """Each of these steps is as long for them."""
    engine = make_engine("T1")
    forwards: list[Forward] = []
    submit = engine.executor.submit

    def record(command: Command) -> None:
        if isinstance(command, Forward):
            forwards.append(command)
        submit(command)

    engine.executor.submit = record  # type: ignore[method-assign]
    engine.add("runs", [1, 2, 3], max_tokens=40)
    engine.run(turns=4)
    engine.add("many", PROMPT, n=MANY)
    engine.run()
    assert max(len(forward.chunks) for forward in forwards) == batcher._MOST_CONTINUATIONS
    assert sum(len(forward.chunks) > 1 for forward in forwards) >= MANY // batcher._MOST_CONTINUATIONS
