"""The scheduler on the simulated host: any plan, any pool size, any order of events gives the reference's tokens."""

from __future__ import annotations

import dataclasses
import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.engine.core import Core
from seesaw.engine.cost.estimate import estimate
from seesaw.engine.executor.simulated import NO_HOST
from seesaw.engine.planning.policy import Phase, Situation, StaticPolicy
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.seq_state import SeqState
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.values.errors import EngineDeadError, IntegrityError, QueueFullError, RequestError
from seesaw.engine.wire.commands import Command
from seesaw.engine.wire.messages import LAST, Add, FinishReason, Output
from tests.engine.scheduler.symbolic import SHAPE, SymbolicExecutor, measured, next_token, reference

PLANS = [
    ("T1", "", ""),
    ("T2", "", ""),
    ("P4", "", ""),
    ("D2", "", ""),
    ("P2", "T2", ""),
    ("T2", "P2", ""),
    ("P4", "T4", ""),
    ("P4", "T2P2", ""),
    ("D2", "T2", ""),
    ("D2P2", "T4", ""),
    ("D4", "P4", ""),
    ("T4", "D2T2", ""),
    ("P4", "P4", "T4"),
    ("P4", "T2P2", "T4"),
    ("D2P2", "P4", "T4"),
    ("P4", "T4", "P4"),
]


def make_config(prefill: str, decode: str = "", tail: str = "", **changes: object) -> EngineConfig:
    defaults: dict[str, object] = {
        "block_size": 4,
        "max_model_len": 64,
        "num_device_blocks": 40,
        "num_host_blocks": 40,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 16,
        "policy": "paper",  # always surges: every prompt goes through the host
        "surge_min_tokens": 0,
        "tail_max_seqs": 3,
    }
    return EngineConfig(prefill=prefill, decode=decode, tail=tail, **{**defaults, **changes})  # type: ignore[arg-type]


def run(core: Core, until_turn: int | None = None) -> list[Output]:
    outputs: list[Output] = []
    turns = 0
    scheduler = core._scheduler
    while not core.is_idle and (until_turn is None or turns < until_turn):
        outputs += core.turn()
        turns += 1
        if turns % 7 == 0:
            queues = scheduler._lifecycle.queues
            scheduler._lifecycle.blocks.check(seq for state in SeqState for seq in queues.walk(state))
        assert turns < 200_000, "the engine does not come to an end"
    return outputs


def gather(outputs: list[Output]) -> tuple[dict[tuple[str, int], list[int]], dict[tuple[str, int], FinishReason]]:
    tokens: dict[tuple[str, int], list[int]] = {}
    reasons: dict[tuple[str, int], FinishReason] = {}
    for output in outputs:
        key = (output.id, output.index)
        assert key not in reasons, "output after the end"
        tokens.setdefault(key, []).extend(output.tokens)
        if output.finish_reason is not None:
            reasons[key] = output.finish_reason
    return tokens, reasons


def prompt_of(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(SHAPE.vocab) for _ in range(length)]


@pytest.mark.parametrize("plan", PLANS, ids="->".join)
def test_many_requests_give_the_reference(plan: tuple[str, str, str]) -> None:
    config = make_config(*plan)
    executor = SymbolicExecutor(config)
    core = Core(config, executor)
    rng = random.Random(1)
    requests = {f"r{i}": (prompt_of(rng, rng.randint(1, 40)), rng.randint(1, 24)) for i in range(40)}
    for name, (prompt, max_tokens) in requests.items():
        core.add(Add(name, prompt, SamplingParams(max_tokens=max_tokens, temperature=0.0)))
    tokens, reasons = gather(run(core))
    assert tokens == {(name, 0): reference(*request) for name, request in requests.items()}
    assert set(reasons.values()) == {FinishReason.LENGTH}
    stats = core.stats()
    assert stats.device_blocks_used == stats.host_blocks_used == 0
    assert stats.prompt_tokens == sum(len(prompt) for prompt, _ in requests.values())
    assert stats.generation_tokens == sum(max_tokens for _, max_tokens in requests.values())
    if config.plan.prefill != config.plan.decode:
        assert sum(stats.transitions.values()) == executor.transitions >= 2
        assert stats.swap_bytes["out"] > 0 and stats.swap_bytes["in"] > 0
    elif config.plan.is_static:
        assert executor.transitions == executor.swaps == 0
    assert 1 < executor.largest_in_flight <= config.plan.prefill.dp * (config.plan.prefill.pp + 1) + 4


@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_any_plan_any_pools_any_events(data: st.DataObject) -> None:
    """Small pools, so that everything happens: surges, swaps, preemption to the host and by recompute, aborts, prefixes
    that are found on devices and on the host, and needed by others meanwhile, requests that give way to others."""
    plan = data.draw(st.sampled_from(PLANS))
    block_size = data.draw(st.sampled_from([1, 3, 4, 8]))
    max_model_len = data.draw(st.integers(8, 48))
    longest = -(-max_model_len // block_size)
    config = make_config(
        *plan,
        block_size=block_size,
        max_model_len=max_model_len,
        num_device_blocks=longest + data.draw(st.integers(0, 2 * longest)),
        num_host_blocks=longest + data.draw(st.integers(0, 2 * longest)),
        max_num_seqs=data.draw(st.integers(1, 8)),
        max_num_batched_tokens=data.draw(st.sampled_from([1, 5, 16, 64])),
        policy=data.draw(st.sampled_from(["cost", "paper"])),
        surge_min_tokens=data.draw(st.sampled_from([0, 20, -1])),
        tail_max_seqs=data.draw(st.integers(0, 4)),
        max_stall_s=data.draw(st.sampled_from([0.0, 0.02, 60.0])),
        max_wait_s=data.draw(st.sampled_from([0.0, 0.02, 60.0])),
        enable_prefix_caching=data.draw(st.sampled_from([True, True, False])),
    )
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    swap_bytes_per_s = data.draw(st.sampled_from([1e6, 20e9]))
    # Steps of one length, or those of a host where layouts differ.
    times = data.draw(st.sampled_from([measured(config), estimate(SHAPE, config.plan, NO_HOST)]))
    times = msgspec.structs.replace(
        times,
        transition_s=data.draw(st.sampled_from([0.0, 0.01, 0.5])),
        swap_out_bytes_per_s=swap_bytes_per_s,
        swap_in_bytes_per_s=swap_bytes_per_s,
    )
    executor = SymbolicExecutor(config, times, turn_s=data.draw(st.sampled_from([0.0, 1e-5])))
    core = Core(config, executor)
    commons = [prompt_of(rng, max_model_len) for _ in range(2)]
    expected: dict[tuple[str, int], list[int]] = {}
    aborted: set[tuple[str, int]] = set()
    outputs: list[Output] = []
    for i in range(data.draw(st.integers(1, 25))):
        length = rng.randint(1, max_model_len - 1)
        shared = rng.choice([0, length // 2, length])
        prompt = rng.choice(commons)[:shared] + prompt_of(rng, length - shared)
        params = SamplingParams(max_tokens=rng.randint(1, max_model_len), temperature=0.0, n=rng.choice([1, 1, 1, 3]))
        priority = rng.choice([0, 0, LAST])
        core.add(Add(f"r{i}", prompt, params, priority, cache_salt=rng.choice(["", "", "", "pepper"])))
        most = min(params.max_tokens, max_model_len - length)
        for index in range(params.n):
            expected[f"r{i}", index] = reference(prompt, most)
        outputs += run(core, until_turn=rng.choice([0, 0, 1, 7, 40, 1000]))
        if rng.random() < 0.05:
            core.reset_prefix_cache()
        if rng.random() < 0.2:
            victim, index = f"r{rng.randint(0, i)}", rng.choice([None, 0, 1])
            outputs += core.turn()
            core.abort(victim, index)
            aborted.update(key for key in expected if key[0] == victim and index in (None, key[1]))
    outputs += run(core)
    tokens, _ = gather(outputs)
    for key, want in expected.items():
        got = tokens.get(key, [])
        assert got == want if key not in aborted else got == want[: len(got)], key
    stats = core.stats()
    assert stats.device_blocks_used == stats.host_blocks_used == 0
    if not config.enable_prefix_caching:
        assert stats.device_blocks_cached == stats.host_blocks_cached == stats.prefix_cache_hits.get("host", 0) == 0


def test_eos_ends_a_sequence_and_the_step_behind_it_is_ignored() -> None:
    shape = dataclasses.replace(SHAPE, eos_token_ids=(reference([1, 2, 3], 9)[5],))
    want = reference([1, 2, 3], 9, shape.eos_token_ids)
    for plan in (("T1",), ("P4",), ("P2", "T2")):
        config = make_config(*plan)
        core = Core(config, SymbolicExecutor(config, shape=shape))
        core.add(Add("stops", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0.0)))
        core.add(Add("ignores", [1, 2, 3], SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True)))
        stop_ids = SamplingParams(max_tokens=9, temperature=0.0, ignore_eos=True, stop_token_ids=(want[2],))
        core.add(Add("stop ids", [1, 2, 3], stop_ids))
        outputs = run(core)
        tokens, reasons = gather(outputs)
        assert tokens["stops", 0] == want and reasons["stops", 0] is FinishReason.STOP
        assert tokens["ignores", 0] == reference([1, 2, 3], 9) and reasons["ignores", 0] is FinishReason.LENGTH
        assert tokens["stop ids", 0] == want[: want.index(want[2]) + 1]
        assert {o.stop_token for o in outputs if o.finish_reason is FinishReason.STOP} == {want[-1], want[2]}


def test_continuations_share_the_prompts_blocks() -> None:
    config = make_config("T1", num_device_blocks=60, max_num_batched_tokens=64)
    core = Core(config, SymbolicExecutor(config))
    core.add(Add("r", list(range(40)), SamplingParams(max_tokens=4, temperature=0.0, n=4)))
    core.turn()
    assert core.stats().device_blocks_used == 9 + 4 * 2  # 9 full blocks are shared; each has its last, and one to grow
    tokens, _ = gather(run(core))
    assert len(tokens) == 4 and set(map(tuple, tokens.values())) == {tuple(reference(list(range(40)), 4))}


def test_a_short_queue_never_switches() -> None:
    config = make_config("P4", "T4", surge_min_tokens=-1, max_num_batched_tokens=32)
    executor = SymbolicExecutor(config)
    core = Core(config, executor)
    for i in range(5):
        core.add(Add(f"r{i}", [1, 2, 3 + i], SamplingParams(max_tokens=8, temperature=0.0)))
        tokens, _ = gather(run(core))
        assert tokens[f"r{i}", 0] == reference([1, 2, 3 + i], 8)
    assert executor.transitions == 0


def test_a_decode_phase_gives_way_to_a_prompt_that_waits_too_long() -> None:
    config = make_config("P2", "T2", num_host_blocks=34, max_wait_s=0.05, surge_min_tokens=0)
    core = Core(config, SymbolicExecutor(config))
    for i in range(30):
        core.add(Add(f"r{i}", prompt_of(random.Random(i), 20), SamplingParams(max_tokens=40, temperature=0.0)))
    tokens, _ = gather(run(core))
    bounded = core.stats().transitions["P2->T2"]
    patient_config = dataclasses.replace(config, max_wait_s=1e9)
    patient = Core(patient_config, SymbolicExecutor(patient_config))
    for i in range(30):
        patient.add(Add(f"r{i}", prompt_of(random.Random(i), 20), SamplingParams(max_tokens=40, temperature=0.0)))
    assert gather(run(patient))[0] == tokens
    assert bounded > patient.stats().transitions["P2->T2"]


def test_bounds_of_nothing_still_let_everybody_get_on() -> None:
    """Each phase gets at least one step done, however soon the bounds would end it."""
    config = make_config("P2", "T2", max_stall_s=0.0, max_wait_s=0.0, num_device_blocks=64)
    core = Core(config, SymbolicExecutor(config, measured(config, transition_s=0.0), turn_s=1e-4))
    for i in range(6):
        core.add(Add(f"r{i}", [i] * 9, SamplingParams(max_tokens=50, temperature=0.0, n=4)))
    run(core)
    stats = core.stats()
    assert stats.generation_tokens == 6 * 4 * 50
    assert sum(stats.transitions.values()) <= sum(stats.steps.values())


def test_a_steady_short_queue_does_not_starve_what_is_on_the_host() -> None:
    config = make_config("P2", "T2", max_num_seqs=4, surge_min_tokens=30, num_device_blocks=64)
    core = Core(config, SymbolicExecutor(config))
    for i in range(12):
        core.add(Add(f"long{i}", [i] * 20, SamplingParams(max_tokens=40, temperature=0.0)))
    finished: list[str] = []
    shorts = 0
    while len([name for name in finished if name.startswith("long")]) < 12:
        while shorts < len(finished) + 4:  # somebody always waits, never enough for a surge
            core.add(Add(f"short{shorts}", [shorts % 7], SamplingParams(max_tokens=5, temperature=0.0)))
            shorts += 1
        finished += [output.id for output in core.turn() if output.finish_reason is not None]
        assert shorts < 2000, "sequences on the host starve"
    finished += [output.id for output in run(core) if output.finish_reason is not None]
    assert len(finished) == 12 + shorts


def test_preempted_sequences_go_to_the_host_or_are_recomputed() -> None:
    for plan in (("T1",), ("P2", "T2")):
        config = make_config(*plan, num_device_blocks=33, max_num_batched_tokens=64)
        executor = SymbolicExecutor(config)
        core = Core(config, executor)
        for i in range(6):
            core.add(Add(f"r{i}", [i] * 9, SamplingParams(max_tokens=50, temperature=0.0)))
        tokens, _ = gather(run(core))
        assert all(tokens[f"r{i}", 0] == reference([i] * 9, 50) for i in range(6))
        assert core.stats().preemptions > 0


def test_invalid_requests_are_refused_and_nothing_else_suffers() -> None:
    config = make_config("P2", "T2", max_queued_requests=3)
    core = Core(config, SymbolicExecutor(config))
    greedy = SamplingParams(max_tokens=4, temperature=0.0)
    core.add(Add("good", [1, 2], greedy))
    for bad in ([], [1] * 64, [-1], [SHAPE.vocab]):
        with pytest.raises(RequestError):
            core.add(Add("bad", bad, greedy))
    for field, value in {"max_tokens": 0, "temperature": -1.0, "top_p": 0.0, "n": 0, "min_p": 2.0, "top_k": -2}.items():
        with pytest.raises(RequestError) as error:
            core.add(Add("bad", [1], SamplingParams(**{field: value})))  # type: ignore[arg-type]
        assert error.value.param == field
    with pytest.raises(RequestError):
        core.add(Add("good", [1], greedy))
    core.add(Add("second", [3], greedy))
    core.add(Add("third", [4], greedy))
    with pytest.raises(QueueFullError):
        core.add(Add("fourth", [5], greedy))
    tokens, _ = gather(run(core))
    assert tokens == {(n, 0): reference(p, 4) for n, p in (("good", [1, 2]), ("second", [3]), ("third", [4]))}


def test_a_loop_that_cannot_go_on_says_so() -> None:
    class Idle(StaticPolicy):
        def admits(self, situation: Situation) -> bool:
            return False

    config = make_config("T1")
    core = Core(config, SymbolicExecutor(config), Idle(config.plan))
    core.add(Add("r", [1], SamplingParams(max_tokens=2)))
    with pytest.raises(IntegrityError, match=r"phase decode .*<r/0 waiting"):
        core.turn()


def test_after_a_turn_that_failed_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks again is told at once, instead of waiting for commands that were never sent."""
    config = make_config("T1")
    core = Core(config, SymbolicExecutor(config))
    core.add(Add("r", [1, 2, 3], SamplingParams(max_tokens=4, temperature=0.0)))

    def submit(self: SymbolicExecutor, command: Command) -> None:
        raise TypeError("cannot be sent")

    monkeypatch.setattr(SymbolicExecutor, "submit", submit)
    with pytest.raises(TypeError, match="cannot be sent"):
        core.turn()
    monkeypatch.undo()
    with pytest.raises(EngineDeadError, match="ended by an error before: cannot be sent"):
        core.turn()


def test_the_symbolic_host_catches_corruption() -> None:
    """A test that cannot fail proves nothing: two swapped host blocks must show."""

    class Corrupt(SymbolicExecutor):
        def run_swap(self, swap):  # type: ignore[no-untyped-def]
            super().run_swap(swap)
            if swap.to_host and len(swap.host_blocks) > 1:
                a, b = swap.host_blocks[:2]
                for offset in range(self._block_size):
                    one, other = self._host[a, offset], self._host[b, offset]
                    self._host[a, offset], self._host[b, offset] = other, one

    config = make_config("P2", "T2")
    core = Core(config, Corrupt(config))
    core.add(Add("r", list(range(20)), SamplingParams(max_tokens=8, temperature=0.0)))
    with pytest.raises(AssertionError):
        run(core)


def test_phases_and_their_times_add_up() -> None:
    config = make_config("P2", "T2")
    executor = SymbolicExecutor(config)
    core = Core(config, executor)
    for i in range(20):
        core.add(Add(f"r{i}", [i] * 20, SamplingParams(max_tokens=10, temperature=0.0)))
    run(core)
    stats = core.stats()
    assert stats.phase == Phase.DECODE and stats.layout == "T2"
    assert sum(stats.phase_seconds.values()) == pytest.approx(executor.now())
    assert stats.transition_seconds["weights"] == pytest.approx(0.5 * sum(stats.transitions.values()))
    assert next_token(5) == 5


def test_the_lowest_priority_goes_first_where_that_is_asked_for() -> None:
    """One at a time: whoever waits goes by priority, then by arrival; and who does not say is in the middle."""
    priorities = {"a": 5, "b": 0, "c": -3, "d": 5, "e": -3}
    config = make_config("T1", max_num_seqs=1, scheduling_policy="priority")
    core = Core(config, SymbolicExecutor(config))
    for name, priority in priorities.items():
        core.add(Add(name, [1, 2, 3], SamplingParams(max_tokens=2, ignore_eos=True), priority))
    ends = [output.id for output in run(core) if output.finish_reason is not None]
    assert ends == ["c", "e", "b", "a", "d"]


def test_priorities_are_refused_where_nobody_looks_at_them() -> None:
    config = make_config("T1")
    core = Core(config, SymbolicExecutor(config))
    with pytest.raises(RequestError, match="--scheduling-policy priority"):
        core.add(Add("a", [1], SamplingParams(), priority=1))


def test_a_transition_is_told_while_it_is_under_way() -> None:
    """Its name is there from the drain on, and every change that was seen completed."""
    config = make_config("P2", "T2", "")
    core = Core(config, SymbolicExecutor(config))
    for i in range(20):
        core.add(Add(f"r{i}", [1] * 20, SamplingParams(max_tokens=8, temperature=0.0)))
    seen = [core.stats()]
    while not core.is_idle:
        core.turn()
        seen.append(core.stats())
    for stats in seen:
        assert not stats.transition or stats.transition.startswith(f"{stats.layout}->")
    told = {stats.transition for stats in seen} - {""}
    assert told == {"T2->P2", "P2->T2"} == seen[-1].transitions.keys() and not seen[-1].transition
