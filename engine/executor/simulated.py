"""A host that does not exist: the same commands and reports, on a virtual clock.

The scheduler's tests run on it, and hosts that we do not own can be planned with it (`configs/hosts/`). Tokens are made
up, but deterministic.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from seesaw.engine.cost.estimate import estimate
from seesaw.engine.cost.profile import HostProfile, read_profile
from seesaw.engine.cost.times import Measured, StepLoad, pairs_of
from seesaw.engine.executor.base import Capacity, Executor
from seesaw.engine.model.shapes import ModelShape
from seesaw.engine.parallel.layout import Layout
from seesaw.engine.sizing.fit import ModelFit, fit_model
from seesaw.engine.sizing.model import find_shape
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import Command, Forward, Masks, Report, Swap, Transition, num_slots

Seconds = npt.NDArray[np.float64]

# Round figures, for whoever names no host. It is none that there is.
NO_HOST = HostProfile(
    matmul_flops_per_s=100e12,
    memory_bytes_per_s=1e12,
    link_s={
        "sum": {1 << 14: 20e-6, 1 << 26: 4e-3},
        "send": {1 << 14: 20e-6, 1 << 26: 4e-3},
    },
    host_to_device_bytes_per_s=20e9,
    device_to_host_bytes_per_s=20e9,
    step_s=0.5e-3,
)


class SimulatedExecutor(Executor):
    """Stages are busy one forward at a time, and the first waits for tokens that the last has yet to sample. Each
    replica copies its swaps one after another in each direction, beside its forwards. Nothing goes wrong, and nothing
    varies: all takes just as long as the `Measured` times say that the engine is given, too.

    `instant` takes no time at all: to measure what surrounds the engine. In `real_time` the clock is the wall's, and
    `collect` sleeps until the next completion: to load what surrounds the engine at a known rate.
    """

    def __init__(
        self,
        config: EngineConfig,
        shape: ModelShape | None = None,
        times: Measured | None = None,
        *,
        turn_s: float = 0.0,
        instant: bool = False,
        real_time: bool = False,
    ) -> None:
        """`times` default to what is estimated for the host that the configuration names; `turn_s` is what a turn of
        the engine's own loop takes."""
        shape = shape or find_shape(config)
        self._plan = config.plan
        self._turn_s = turn_s
        self._instant = instant
        fit = fit_model(config, shape, "simulated")
        self._geometry = fit.geometry
        if times is None:
            profile = read_profile(Path(config.host_profile)) if config.host_profile else NO_HOST
            weights = "resident" if config.weights == "resident" else "reload"
            times = estimate(shape, self._plan, profile, weights)
        self._times = times
        self.capacity = self._make_capacity(fit, times)
        self._clock_s = 0.0
        self._wall_origin_s = time.monotonic() if real_time else None
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], list[Report]]]] = []
        self._stage_free_s: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._copies_free_s: defaultdict[tuple[int, bool], float] = defaultdict(float)
        slots = num_slots(config.max_num_seqs)
        # When a slot's last token is there, by replica.
        self._sampled_s: defaultdict[int, Seconds] = defaultdict(lambda: np.zeros(slots))

    def _make_capacity(self, fit: ModelFit, times: Measured) -> Capacity:
        assert fit.num_device_blocks is not None  # no pool waits for a measurement here
        geometry = fit.geometry
        return Capacity(
            shape=geometry.shape,
            max_model_len=fit.max_model_len,
            num_device_blocks=fit.num_device_blocks,
            num_host_blocks=fit.num_host_blocks,
            device_block_bytes=geometry.max_device_block_bytes,
            host_block_bytes=geometry.host_block_bytes,
            device="simulated",
            weights="none",
            times=times,
        )

    def submit(self, command: Command) -> None:
        match command:
            case Forward():
                end_s, stages_s = self._run_stages(command)
                self._at(end_s, lambda: self._report(command, self.run_forward(command), max(stages_s), stages_s))
            case Masks():
                pass  # tokens are made up here, and none is masked: see `Core`
            case Swap():
                end_s, busy_s = self._run_copies(command)
                self._at(end_s, lambda: self._report_swap(command, busy_s))
            case Transition():
                busy_s = self._seconds(self._times.transition_s)
                self._at(self.now() + busy_s, lambda: self._report(command, [], busy_s))

    def collect(self) -> list[Report]:
        """Advance the clock to the next completion, and return all that happen then."""
        self._clock_s += self._seconds(self._turn_s)
        if not self._events:
            return []
        if self._wall_origin_s is None:
            self._clock_s = max(self._clock_s, self._events[0][0])
        else:
            time.sleep(max(0.0, self._events[0][0] - self.now()))
            self._clock_s = max(self.now(), self._events[0][0])
        reports: list[Report] = []
        while self._events and self._events[0][0] <= self._clock_s:
            reports += heapq.heappop(self._events)[2]()
        return reports

    def wait_handle(self) -> None:
        return None

    def now(self) -> float:
        if self._wall_origin_s is not None:
            return time.monotonic() - self._wall_origin_s
        return self._clock_s

    def sleep_until(self, time_s: float) -> None:
        """Nothing is in flight: the virtual clock may jump ahead, to when something comes from outside."""
        self._clock_s = max(self._clock_s, time_s)

    def close(self) -> None:
        self._events.clear()

    # --- what a test may replace to look inside

    def run_forward(self, forward: Forward) -> list[int]:
        """The forward completes; one token for each sampled chunk."""
        vocab = self.capacity.shape.vocab
        _, positions, _ = forward.decodes.columns()
        ends = [*(positions + 1).tolist(), *(c.start + len(c.tokens) for c in forward.chunks if c.sample)]
        return [(7 + 31 * end) % vocab for end in ends]

    def run_swap(self, swap: Swap) -> None:
        """The copy completes."""

    # --- time

    def _at(self, time_s: float, happen: Callable[[], list[Report]]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen))

    def _seconds(self, duration_s: float) -> float:
        return 0.0 if self._instant else duration_s

    def _run_stages(self, forward: Forward) -> tuple[float, list[float]]:
        """When the forward ends, and how long it keeps each stage busy."""
        load = load_of(forward, self.capacity.shape.attention_span)
        busy_s = [self._seconds(stage.step_s(load)) for stage in self._times.layouts[forward.layout]]
        sampled_s = self._sampled_s[forward.replica]
        slots, _, tokens = forward.decodes.columns()
        time_s = max(self.now(), float(sampled_s[slots[tokens < 0]].max(initial=0.0)))
        for stage, stage_s in enumerate(busy_s):
            start_s = max(time_s, self._stage_free_s[forward.replica, stage])
            time_s = start_s + stage_s
            self._stage_free_s[forward.replica, stage] = time_s
        sampled_s[slots] = time_s
        sampled_s[[c.slot for c in forward.chunks if c.sample]] = time_s
        return time_s, busy_s

    def _run_copies(self, swap: Swap) -> tuple[float, float]:
        """When the swap ends, and how long it keeps the replica's copies busy."""
        num_bytes = len(swap.device_blocks) * self._geometry.host_block_bytes
        start_s = max(self.now(), self._copies_free_s[swap.replica, swap.to_host])
        if swap.to_host:
            start_s = max(start_s, *(self._stage_free_s[swap.replica, s] for s in range(self._layout(swap).pp)), 0.0)
        rates = self._times.swap_out_bytes_per_s, self._times.swap_in_bytes_per_s
        busy_s = self._seconds(num_bytes / rates[0 if swap.to_host else 1])
        self._copies_free_s[swap.replica, swap.to_host] = start_s + busy_s
        return start_s + busy_s, busy_s

    def _layout(self, command: Forward | Swap) -> Layout:
        return self._plan.layouts[command.layout]

    # --- reports

    def _report(
        self, command: Forward | Swap | Transition, tokens: list[int], busy_s: float, stages_s: Sequence[float] = ()
    ) -> list[Report]:
        """`stages_s`: of each stage, where they differ."""
        if isinstance(command, Transition):
            return [Report(rank, command.id, seconds=busy_s) for rank in range(self._plan.world_size)]
        layout = self._layout(command)
        sampling_rank = layout.sampling_rank(command.replica)
        return [
            Report(
                rank,
                command.id,
                tokens if rank == sampling_rank else [],
                stages_s[layout.coord(rank).stage] if stages_s else busy_s,
                self._rank_bytes(command) if isinstance(command, Swap) else 0,
            )
            for rank in layout.replica_ranks(command.replica)
        ]

    def _report_swap(self, swap: Swap, busy_s: float) -> list[Report]:
        self.run_swap(swap)
        return self._report(swap, [], busy_s)

    def _rank_bytes(self, swap: Swap) -> int:
        total_bytes = len(swap.device_blocks) * self._geometry.host_block_bytes
        return total_bytes // self._layout(swap).ranks_per_replica


def load_of(forward: Forward, span: int) -> StepLoad:
    """What a step holds. A single token behind the first counts as decoding, whatever it is."""
    decodes, context = len(forward.decodes), int(forward.decodes.columns()[1].clip(max=span).sum())
    tokens, pairs = 0, 0.0
    for chunk in forward.chunks:
        count = len(chunk.tokens)
        if count == 1 and chunk.start:
            decodes += 1
            context += min(chunk.start, span)
        else:
            tokens += count
            pairs += pairs_of(chunk.start, count, span)
    return StepLoad(tokens, pairs, decodes, context)
