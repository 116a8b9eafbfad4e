"""Prefixes are computed once: found on devices and on the host, in any layout, until their blocks are needed."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from seesaw.engine.core import Core
from seesaw.engine.cost.times import Measured
from seesaw.engine.planning.policy import Phase
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.wire.messages import Add, CachedPrompt, Output
from tests.engine.scheduler.symbolic import SymbolicExecutor, measured, reference
from tests.engine.scheduler.test_scheduler import gather, make_config, prompt_of

STEADY = {"policy": "cost", "surge_min_tokens": -1}  # never a surge


class Engine:
    """A core, and all that it told."""

    def __init__(self, *plan: str, times: Measured | None = None, **changes: object) -> None:
        self.config = make_config(
            *plan, **{"max_model_len": 128, "num_device_blocks": 200, "num_host_blocks": 200, **changes}
        )
        self.executor = SymbolicExecutor(self.config, times)
        self.core = Core(self.config, self.executor)
        self.outputs: list[Output] = []
        self.cached: list[CachedPrompt] = []
        self._wanted: dict[tuple[str, int], list[int]] = {}

    def add(
        self, name: str, prompt: list[int], max_tokens: int = 4, n: int = 1, salt: str = "", priority: int = 0
    ) -> None:
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, n=n)
        self.core.add(Add(name, prompt, params, priority, salt))
        self._wanted.update(((name, index), reference(prompt, max_tokens)) for index in range(n))

    def run(self, turns: int | None = None) -> None:
        """Until nothing is left to do; then everything must have been right."""
        taken = 0
        while not self.core.is_idle and (turns is None or taken < turns):
            outputs = self.core.turn()
            self.cached += outputs.cached
            self.outputs += outputs
            taken += 1
        if turns is None:
            assert gather(self.outputs)[0] == self._wanted

    def ask(self, name: str, prompt: list[int], **options: object) -> list[int]:
        """One request alone; its tokens."""
        self.add(name, prompt, **options)  # type: ignore[arg-type]
        self.run()
        return self._wanted[name, 0]

    def found(self, name: str) -> int:
        """Tokens of a request's prompt that it was told to have found."""
        tokens = [cached.tokens for cached in self.cached if cached.id == name]
        assert len(tokens) <= 1
        return sum(tokens)

    @property
    def prefilled(self) -> int:
        return self.core._scheduler._lifecycle.counters.prefilled_tokens


def test_a_prompt_finds_what_another_computed() -> None:
    engine = Engine("T1")
    prompt = prompt_of(random.Random(0), 41)
    engine.ask("first", prompt)
    before = engine.prefilled
    engine.ask("again", prompt)
    engine.ask("longer", [*prompt[:30], *prompt_of(random.Random(1), 10)])
    assert engine.found("first") == 0 and engine.found("again") == 40 and engine.found("longer") == 28
    assert engine.prefilled - before == 1 + 12
    stats = engine.core.stats()
    assert stats.prefix_cache_queries == 41 + 41 + 40 and stats.prefix_cache_hits["device"] == 40 + 28
    assert stats.device_blocks_cached > 0 and stats.device_blocks_used == 0


def test_at_least_the_last_token_is_computed() -> None:
    engine = Engine("T1")
    prompt = prompt_of(random.Random(0), 40)  # whole blocks
    engine.ask("first", prompt)
    engine.ask("again", prompt)
    assert engine.found("again") == 36


def test_a_conversation_finds_the_answers_before() -> None:
    engine = Engine("T1")
    prompt = prompt_of(random.Random(0), 10)
    for turn in range(4):
        answer = engine.ask(f"turn {turn}", prompt, max_tokens=11)
        if turn:
            # The last token of the answer was never anybody's input.
            assert engine.found(f"turn {turn}") >= len(prompt) - 7 - 4
        prompt = [*prompt, *answer, *prompt_of(random.Random(turn), 7)]


def test_who_goes_on_at_once_finds_the_answer_too() -> None:
    """Though a step that was sent before the end was known still names its blocks."""
    engine = Engine("T1")
    prompt = prompt_of(random.Random(0), 10)
    params = SamplingParams(max_tokens=40, temperature=0.0, stop_token_ids=(reference(prompt, 20)[19],))
    engine.core.add(Add("first", prompt, params))
    tokens: list[int] = []
    while len(tokens) < 20:
        tokens += [token for output in engine.core.turn() for token in output.tokens]
    assert engine.core._scheduler.has_commands_in_flight
    engine.core.add(Add("next", [*prompt, *tokens, 7], SamplingParams(max_tokens=2, temperature=0.0)))
    engine._wanted["next", 0] = reference([*prompt, *tokens, 7], 2)
    engine.run()
    assert engine.found("next") == 28  # of 30 that have K and V


@pytest.mark.parametrize("plan", [("T1",), ("P4",), ("P2", "T2"), ("D2", "T2")])
def test_off_nothing_is_found(plan: tuple[str, ...]) -> None:
    engine = Engine(*plan, enable_prefix_caching=False)
    prompt = prompt_of(random.Random(0), 41)
    for i in range(3):
        engine.ask(f"r{i}", prompt)
    engine.add("beside", prompt)
    engine.add("each other", prompt, n=3)  # continuations share their prompt all the same
    engine.run()
    assert not engine.cached and engine.prefilled == 5 * 41 + 2
    assert engine.core.stats().prefix_cache_queries == 0
    stats = engine.core.stats()
    assert stats.device_blocks_cached == stats.host_blocks_cached == 0


def test_a_salt_keeps_prefixes_apart() -> None:
    engine = Engine("T1")
    prompt = prompt_of(random.Random(0), 41)
    for name, salt in (("a", ""), ("b", "x"), ("c", "y"), ("d", "x"), ("e", "")):
        engine.ask(name, prompt, salt=salt)
    assert [engine.found(name) for name in "abcde"] == [0, 0, 0, 40, 40]


def test_a_reset_forgets_everything_also_what_is_in_use() -> None:
    """Wherever those are that had begun: what they compute, or bring from the host, later is not found either."""
    begun = 0
    for turns in range(1, 40, 3):
        engine = Engine("P2", "T2")
        prompt = prompt_of(random.Random(0), 41)
        engine.ask("first", prompt)
        engine.add("runs", prompt, max_tokens=20)
        engine.run(turns)
        engine.core.reset_prefix_cache()
        engine.run()
        engine.ask("after", prompt)
        # Had it not begun, it computed everything after the reset.
        begun += engine.found("runs") == 40
        assert (engine.found("runs"), engine.found("after")) in ((40, 0), (0, 40)), turns
        engine.ask("later", prompt)
        assert engine.found("later") == 40
    assert begun >= 6


@pytest.mark.parametrize("plan", [("T1",), ("P4",)])
def test_a_reset_forgets_the_output_of_who_just_ended(plan: tuple[str, ...]) -> None:
    """It is over, but a step in flight names it still, and its output's blocks get their keys only behind that."""
    engine = Engine(*plan)
    prompt = prompt_of(random.Random(0), 9)
    engine.core.add(Add("first", prompt, SamplingParams(max_tokens=60, temperature=0.0)))
    for _ in range(40):
        engine.core.turn()
    engine.core.abort("first")
    engine.core.reset_prefix_cache()
    engine.run()
    engine.ask("again", prompt, max_tokens=1)  # from here on the start of that output would be found
    engine.ask("longer", [*prompt, *reference(prompt, 60)])
    assert engine.found("again") == 0 and engine.found("longer") == 8


def test_what_was_not_used_for_longest_goes_first() -> None:
    engine = Engine("T1", num_device_blocks=31, max_num_seqs=1, max_model_len=64)
    prompts = [prompt_of(random.Random(i), 41) for i in range(3)]  # 11 blocks each, with their outputs
    names = [f"{turn}-{i}" for turn, i in enumerate((0, 1, 0, 2, 0, 1))]
    for name in names:
        engine.ask(name, prompts[int(name[-1])])
    # For the others the end of prompt 1 had to go; its start is found still.
    assert [engine.found(name) for name in names] == [0, 0, 40, 0, 40, 36]


def test_requests_that_wait_for_the_same_prefix_compute_it_once() -> None:
    """However their prompts are cut; and a stranger overtakes those that wait."""
    for plan in (("T1",), ("P4",), ("P2", "T2")):
        engine = Engine(*plan, num_device_blocks=400, num_host_blocks=400, max_num_seqs=16)
        common = prompt_of(random.Random(0), 80)
        for i in range(10):
            engine.add(f"r{i}", [*common, *prompt_of(random.Random(100 + i), 5)])
        engine.add("stranger", prompt_of(random.Random(7), 9))
        engine.run()
        assert engine.prefilled == 80 + 10 * 5 + 9, plan
        assert engine.core.stats().prefix_cache_hits["device"] + engine.core.stats().prefix_cache_hits["host"] == 9 * 80


def test_a_stranger_overtakes_however_many_wait_for_one_prefix() -> None:
    """On a replica that has nothing to do, while another computes the prefix in many steps."""
    engine = Engine("D2", num_device_blocks=400, max_num_seqs=64, max_num_batched_tokens=8, **STEADY)
    common = prompt_of(random.Random(0), 100)
    for i in range(40):
        engine.add(f"r{i}", [*common, i])
    engine.add("stranger", [7, 8], max_tokens=1)
    engine.run(turns=8)
    assert [output.id for output in engine.outputs] == ["stranger"]
    engine.run()
    assert engine.prefilled <= 2 * 100 + 40 + 2  # the other one may compute it, too, once the first is much busier


def test_continuations_are_told_of_once() -> None:
    engine = Engine("T1")
    prompt = prompt_of(random.Random(0), 41)
    engine.ask("first", prompt)
    engine.add("again", prompt, n=3)
    engine.run()
    assert engine.found("again") == 40


@pytest.mark.parametrize("plan", [("P2", "T2"), ("P4", "T4"), ("D2", "T2"), ("T2", "P2")])
def test_a_surge_finds_on_the_host_what_an_earlier_one_left_there(plan: tuple[str, ...]) -> None:
    engine = Engine(*plan, num_device_blocks=44)
    common = prompt_of(random.Random(0), 60)
    strangers = [prompt_of(random.Random(50 + i), 100) for i in range(6)]
    engine.ask("first", [*common, 1])
    for i, prompt in enumerate(strangers):  # they need all device blocks
        engine.ask(f"stranger {i}", prompt)
    swapped = engine.core.stats().swap_bytes["in"]
    before = engine.prefilled
    engine.ask("again", [*common, 2])
    assert engine.found("again") == 60 and engine.prefilled - before == 1
    stats = engine.core.stats()
    assert stats.prefix_cache_hits["host"] == 60 and stats.swap_bytes["in"] > swapped
    assert sum(stats.transitions.values()) >= 4 and stats.host_blocks_used == 0 < stats.host_blocks_cached


@pytest.mark.parametrize("plan", [("P2", "T2"), ("P4", "P4", "T4"), ("D2", "T2")])
def test_what_was_found_once_is_on_the_host_from_then_on(plan: tuple[str, ...]) -> None:
    """Without any surge: others need its device blocks, and it comes back."""
    engine = Engine(*plan, num_device_blocks=44, max_num_seqs=2, **STEADY)
    common = prompt_of(random.Random(0), 60)
    strangers = iter([prompt_of(random.Random(50 + i), 100) for i in range(20)])
    engine.ask("first", [*common, 1])
    assert engine.core.stats().host_blocks_cached == 0
    engine.ask("second", [*common, 2])
    assert engine.core.stats().host_blocks_cached == 15
    engine.ask("third", [*common, 3])
    for i in range(6):
        engine.ask(f"stranger {i}", next(strangers))
    engine.ask("again", [*common, 4])
    stats = engine.core.stats()
    assert engine.found("again") == 60 and stats.prefix_cache_hits["host"] == 60
    assert not stats.transitions and stats.host_blocks_cached == 15 and stats.host_blocks_used == 0


def test_a_surge_finds_what_was_found_before_it() -> None:
    engine = Engine("P2", "T2", surge_min_tokens=100, num_host_blocks=400, num_device_blocks=400)
    common = prompt_of(random.Random(0), 60)
    for name in ("first", "second"):
        engine.ask(name, [*common, 1])
    assert not engine.core.stats().transitions
    for i in range(30):
        engine.add(f"r{i}", [*common, *prompt_of(random.Random(i), 50)], max_tokens=2)
    engine.run()
    stats = engine.core.stats()
    assert stats.transitions and stats.prefix_cache_hits["host"] >= 60
    assert all(engine.found(f"r{i}") == 60 for i in range(30))


@pytest.mark.parametrize("swap_bytes_per_s", [1e4, 20e9])
def test_a_reset_also_reaches_copies_under_way(swap_bytes_per_s: float) -> None:
    times = measured(make_config("P2", "T2"), swap_out_bytes_per_s=swap_bytes_per_s)
    engine = Engine("P2", "T2", times=times, **STEADY)
    prompt = prompt_of(random.Random(0), 61)
    engine.ask("first", prompt)
    engine.add("second", prompt)
    engine.run(turns=3)
    engine.core.reset_prefix_cache()
    engine.run()
    stats = engine.core.stats()
    assert stats.swap_bytes["out"] > 0 and stats.host_blocks_used == stats.host_blocks_cached == 0


def test_a_surge_waits_for_what_it_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns come while copies are on their way: with new requests, and with the first of the ranks that copy."""
    engine = Engine("P2", "T2", num_device_blocks=44)
    common = prompt_of(random.Random(0), 60)
    engine.ask("first", [*common, 1])
    for i in range(6):  # they need all device blocks
        engine.ask(f"stranger {i}", prompt_of(random.Random(50 + i), 100))
    computed = engine.core._scheduler._lifecycle.counters.prompt_tokens
    before = computed[Phase.PREFILL]
    collect, turns = engine.executor.collect, itertools.count()
    monkeypatch.setattr(engine.executor, "collect", lambda: [] if next(turns) % 2 else collect())
    engine.ask("again", [*common, 2])
    assert engine.found("again") == 60 and computed[Phase.PREFILL] - before == 61


def test_prompts_that_share_a_prefix_share_its_place_on_the_host() -> None:
    """A surge takes as many of them as their own blocks leave room for."""
    engine = Engine("P2", "T2", num_host_blocks=40, num_device_blocks=200, max_num_seqs=8)
    common = prompt_of(random.Random(0), 80)  # 20 blocks
    engine.ask("first", [*common, 1])
    transitions = sum(engine.core.stats().transitions.values())
    for i in range(8):
        engine.add(f"r{i}", [*common, *prompt_of(random.Random(i), 5)])
    engine.run()
    assert sum(engine.core.stats().transitions.values()) - transitions == 2


@pytest.mark.parametrize(("bytes_per_s", "found"), [(20e9, 60), (1e3, 0)])
def test_what_is_copied_more_slowly_than_computed_is_computed(bytes_per_s: float, found: int) -> None:
    config = make_config("P2", "T2")
    times = msgspec.structs.replace(measured(config), swap_in_bytes_per_s=bytes_per_s)
    engine = Engine("P2", "T2", num_device_blocks=44, times=times)
    common = prompt_of(random.Random(0), 60)
    engine.ask("first", [*common, 1])
    for i in range(6):
        engine.ask(f"stranger {i}", prompt_of(random.Random(50 + i), 100))
    engine.ask("again", [*common, 2])
    assert engine.found("again") == found


def test_a_request_goes_where_its_prefix_is() -> None:
    engine = Engine("D2", max_num_seqs=16, **STEADY)
    commons = [prompt_of(random.Random(i), 60) for i in range(2)]
    for i, common in enumerate(commons):
        engine.add(f"first {i}", [*common, 1])
    engine.run()
    before = engine.prefilled
    for i in range(6):
        engine.add(f"r{i}", [*commons[i % 2], 2 + i])
    engine.run()
    assert engine.prefilled - before == 6 and all(engine.found(f"r{i}") == 60 for i in range(6))


def test_a_replica_that_is_much_busier_leaves_its_prefix_to_others() -> None:
    engine = Engine("D2", max_num_seqs=32, num_device_blocks=900, **STEADY)
    common = prompt_of(random.Random(0), 20)
    engine.ask("first", [*common, 1])
    for i in range(24):
        engine.add(f"r{i}", [*common, 2 + i], max_tokens=30)
    engine.run(turns=12)
    residents = [replica.residents for replica in engine.core._scheduler._lifecycle.blocks.replicas]
    engine.run()
    assert min(residents) >= 6, residents


def test_where_a_prompt_belongs_is_not_looked_up_block_by_block() -> None:
    """Many wait that begin alike, and each is asked about on every replica, before each prompt that starts."""
    looked_up = 0

    class Counting(dict):  # type: ignore[type-arg]
        def get(self, *key: object) -> object:
            nonlocal looked_up
            looked_up += 1
            return super().get(*key)

    engine = Engine("D4", max_num_seqs=64, num_device_blocks=500, max_num_batched_tokens=64, **STEADY)
    for replica in engine.core._scheduler._lifecycle.blocks.replicas:
        replica.pool._by_key = Counting()
    common = prompt_of(random.Random(0), 100)  # 25 blocks
    for i in range(12):
        engine.add(f"r{i}", [*common, i])
    for i in range(60):
        engine.add(f"stranger {i}", prompt_of(random.Random(i), 12))
    engine.run()
    assert looked_up < 4000


def test_prompts_that_will_be_found_do_not_count_as_work() -> None:
    engine = Engine("P2", "T2", **STEADY)
    common = prompt_of(random.Random(0), 80)
    for i in range(10):
        engine.add(f"r{i}", [*common, *prompt_of(random.Random(i), 5)])
    queues = engine.core._scheduler._lifecycle.queues
    assert queues.waiting_tokens == 85 + 9 * (85 - 64)  # of so many blocks only every eighth is remembered
    engine.run()
    assert queues.waiting_tokens == 0
