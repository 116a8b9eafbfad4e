"""What the steps hold: in a pipeline all stages are busy only if steps are alike and never wait for one another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from seesaw.engine.core import Core
from seesaw.engine.cost.balance import StepCost
from seesaw.engine.cost.estimate import estimate
from seesaw.engine.cost.times import LayoutTimes, Measured, StepLoad
from seesaw.engine.executor.simulated import NO_HOST, SimulatedExecutor
from seesaw.engine.parallel.layout import Layout, Plan
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.batcher import TILE_TOKENS
from seesaw.engine.scheduler.rotation import MAX_PENDING_TOKENS
from seesaw.engine.sizing.model import DEFAULT_SHAPE
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import Chunk, Command, Forward
from seesaw.engine.wire.messages import Add
from tests.engine.forwards import parts

P4 = Plan(Layout(pp=4), Layout(pp=4))
HOST = replace(NO_HOST, matmul_flops_per_s=684e12, memory_bytes_per_s=3e12)  # reads 2 bytes in the time of 228 rows
TIMES = estimate(DEFAULT_SHAPE, P4, HOST)
ALWAYS: dict[str, Any] = {"policy": "paper", "surge_min_tokens": 0}  # change the layout for every prompt
COST = StepCost.of(LayoutTimes(TIMES.layouts[0]))


def weights_only(prefill: str) -> Measured:
    """As if all rows hid behind reading the weights, and exchanges cost nothing."""
    host = replace(HOST, matmul_flops_per_s=1e18, link_s={}, step_s=0.0)
    return estimate(DEFAULT_SHAPE, EngineConfig(prefill=prefill).plan, host)


class RecordingExecutor(SimulatedExecutor):
    """Keeps every forward, and how long the first stage has computed."""

    def __init__(self, config: EngineConfig, times: Measured | None = None) -> None:
        super().__init__(config, times=times or estimate(DEFAULT_SHAPE, config.plan, HOST))
        self.forwards: list[Forward] = []
        self.busy_s = 0.0

    def submit(self, command: Command) -> None:
        if isinstance(command, Forward):
            self.forwards.append(command)
        super().submit(command)

    def _run_stages(self, forward: Forward) -> tuple[float, list[float]]:
        end_s, stages_s = super()._run_stages(forward)
        self.busy_s += stages_s[0]
        return end_s, stages_s


def run(
    lengths: Sequence[tuple[int, int]], times: Measured | None = None, prefill: str = "P4", **options: Any
) -> tuple[RecordingExecutor, Core]:
    """All requests at once, of so many prompt and output tokens each, to their end. `options`: of `EngineConfig`."""
    options = {"num_device_blocks": 20_000, "max_num_batched_tokens": 4096, **options}
    config = EngineConfig(prefill=prefill, executor="simulated", **options)
    executor = RecordingExecutor(config, times)
    core = Core(config, executor)
    for index, (prompt, output) in enumerate(lengths):
        params = SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True)
        core.add(Add(str(index), [index + 1] + [1] * (prompt - 1), params))
    while not core.is_idle:
        core.turn()
    return executor, core


def is_decode(chunk: Chunk) -> bool:
    return len(chunk.tokens) == 1 and chunk.start > 0


def cost(forward: Forward) -> float:
    return sum(COST.decode(1, c.start) if is_decode(c) else COST.chunk(c.start, len(c.tokens)) for c in parts(forward))


def test_stages_stay_busy_while_sequences_come_to_their_ends() -> None:
    """A step with one sequence whose token is not there yet would keep every stage waiting, once in each round."""
    rng = random.Random(0)
    times = weights_only("P4")
    executor, _ = run([(8, rng.randint(100, 400)) for _ in range(203)], times)
    round_s = LayoutTimes(times.layouts[0]).round_s(StepLoad(decodes=203, context=203 * 200))
    longest = 400 * round_s  # each token takes one
    assert executor.now() < 1.05 * longest
    assert executor.busy_s > 0.7 * executor.now()


def test_a_token_is_never_needed_before_its_turn() -> None:
    executor, _ = run([(8, 100)] * 203)
    last: dict[int, int] = {}
    for turn, forward in enumerate(executor.forwards):
        for chunk in parts(forward):
            if chunk.tokens[-1] < 0 and turn > 40:
                assert turn - last[chunk.slot] in (3, 4), "as many steps in between as a round has, or one less"
            last[chunk.slot] = turn


def test_decode_micro_batches_are_alike() -> None:
    executor, _ = run([(16, 400)] * 60 + [(1500, 400)] * 60)
    decodes = [forward for forward in executor.forwards if all(map(is_decode, parts(forward)))]
    rounds = [decodes[turn : turn + 4] for turn in range(200, 1000, 4)]
    # A row may change places with the next round's.
    assert all(abs(sum(len(parts(forward)) for forward in each) - 120) <= 1 for each in rounds)
    costs = [[cost(forward) for forward in each] for each in rounds]
    # What is left is the last row that a step takes beyond its share.
    assert max(max(each) / min(each) for each in costs) < 1.25


def test_prompts_fill_up_the_steps_that_decode() -> None:
    executor, _ = run([(700, 200)] * 100)
    mixed = [forward for forward in executor.forwards if len(forward.decodes) and forward.chunks]
    assert len(mixed) > 50
    most = COST.mixed + COST.chunk(700, 1)  # a chunk has at least a token
    assert all(COST.mixed * 0.99 < cost(forward) < most for forward in mixed[:-4])


def test_prompts_alone_come_in_steps_of_equal_cost() -> None:
    """The further into a prompt a chunk begins, the fewer tokens it has: whole tiles of them, if there are many."""
    executor, _ = run([(8000, 1)] * 4)
    sizes = [forward.num_tokens for forward in executor.forwards]
    costs = [cost(forward) for forward in executor.forwards]
    assert max(sizes) <= 4096
    tile = COST.chunk(8000 - TILE_TOKENS, TILE_TOKENS)
    assert all(b <= a + tile for a, b in pairwise(costs[:-1])), "smaller towards the end, where the pipeline drains"
    assert all(size % TILE_TOKENS == 0 for size in sizes if size >= 8 * TILE_TOKENS)
    first = sizes[: 8000 // sizes[0]]
    assert first == sorted(first, reverse=True) and first[0] > first[-1]


@pytest.mark.parametrize("prefill", ["T1", "P2", "P4"])
def test_one_sequence_alone_has_a_step_waiting_behind_the_one_that_runs(prefill: str) -> None:
    executor, core = run([(8, 50)], prefill=prefill)
    assert len(executor.forwards) == 50
    assert core.stats().generation_tokens == 50
    references = [chunk for forward in executor.forwards for chunk in parts(forward) if chunk.tokens[-1] < 0]
    assert len(references) == 50 - 1 and MAX_PENDING_TOKENS == 2


def test_who_waits_for_a_place_does_not_make_decode_steps_smaller() -> None:
    """Sixteen decode soonest in three steps a round, whether or not others wait for one of them to end."""
    _, core = run([(8, 100)] * 64, max_num_seqs=16)
    stats = core.stats()
    assert stats.decodes / (stats.steps["decode"] + stats.steps["mixed"]) > 5


@pytest.mark.parametrize("prefill", ["P2", "T2P2"])
def test_a_late_sequence_falls_in_with_the_others(prefill: str) -> None:
    """These decode in one step a round. Sent as early as it can be, a late one would keep a step of its own."""
    executor, _ = run([(32, 40)] * 8, weights_only(prefill), prefill=prefill)
    rounds = [forward for forward in executor.forwards if all(map(is_decode, parts(forward)))][2:]
    assert {len(parts(forward)) for forward in rounds[:-1]} == {8}


@pytest.mark.parametrize("prefill", ["D2", "D2P2", "D4"])
def test_requests_that_come_one_by_one_are_shared_by_the_replicas(prefill: str) -> None:
    config = EngineConfig(prefill=prefill, executor="simulated")
    executor = RecordingExecutor(config)
    core = Core(config, executor)
    for index in range(20):
        core.add(Add(str(index), [index + 1] * 40, SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)))
        for _ in range(5):
            core.turn()
    while not core.is_idle:
        core.turn()
    prompts = Counter(f.replica for f in executor.forwards for chunk in parts(f) if chunk.start == 0)
    fair = 20 // config.plan.decode.dp
    assert len(prompts) == config.plan.decode.dp and all(abs(count - fair) <= 2 for count in prompts.values()), prompts


def test_a_sequence_comes_back_to_a_replica_where_it_may_decode() -> None:
    """The replica with the short prompts has more room for blocks, but it has as many sequences as it may."""
    lengths = [(1500, 200)] + [(20, 200)] * 7
    options: dict[str, Any] = {"decode": "D2T2", "max_num_seqs": 4, "num_host_blocks": 4000}
    executor, _ = run(lengths, prefill="D2P2", **ALWAYS, **options)
    decodes = [forward for forward in executor.forwards if all(map(is_decode, parts(forward)))]
    assert max(len(parts(forward)) for forward in decodes) == 4 and len(decodes) < 2 * 200 + 10


def test_without_a_pipeline_steps_are_as_large_as_they_may_be() -> None:
    executor, _ = run([(1000, 20)] * 20, prefill="T1")
    assert [forward.num_tokens for forward in executor.forwards[:4]] == [4096] * 4


def test_a_prefill_phase_is_not_slowed_by_sequences_that_stand_still() -> None:
    executor, core = run([(1000, 30)] * 100, decode="T4", num_host_blocks=8000, **ALWAYS)
    surge = [forward.num_tokens for forward in executor.forwards if forward.layout == 0]
    assert core.stats().transitions == {"T4->P4": 1, "P4->T4": 1} and core.stats().swap_bytes["in"] > 0
    assert all(tokens > 1.5 * COST.mixed for tokens in surge[: len(surge) // 4])


@pytest.mark.parametrize("layouts", [{"prefill": "T1"}, {"prefill": "P2", "decode": "T2"} | ALWAYS])
def test_no_step_samples_more_rows_than_the_workers_have_memory_for(layouts: dict[str, Any]) -> None:
    """A prefill phase takes in more sequences than may decode at once, and these prompts all fit into one step."""
    executor, _ = run([(3, 4)] * 100, max_num_seqs=8, **layouts)
    assert max(len(parts(forward)) for forward in executor.forwards) == 8


def test_no_large_part_of_a_step_is_left_out_for_whole_tiles() -> None:
    """Just below two tiles, leaving out half of each step would take twice as many."""
    executor, _ = run([(8000, 1)], prefill="P2", max_num_batched_tokens=255)
    assert len(executor.forwards) < 45, "with half of each left out they are 63"
