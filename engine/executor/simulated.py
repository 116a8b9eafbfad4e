"""A host that does not exist: the same commands and reports, on a virtual clock.

The scheduler's tests run on it, and hosts that we do not own can be planned with it. Rates are constants for now;
the measured cost model will replace `HostRates`. Tokens are made up, but deterministic.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from engine.config import EngineConfig
from engine.executor.base import Capacity, Executor
from engine.model.shapes import ModelShape
from engine.parallel.layout import Layout
from engine.sizing.fit import fit_model
from engine.sizing.model import find_shape
from engine.steps import Command, Forward, Report, Swap, Transition


@dataclass(frozen=True)
class HostRates:
    """Constant costs of a simulated host. Defaults are round figures, not measurements."""

    step_s: float = 0.002  # of a stage's forward, whatever it holds
    token_s: float = 20e-6  # of a token through the whole model on one device
    all_reduce_token_s: float = 4e-6  # added for every token if tp > 1
    swap_bytes_per_s: float = 20e9  # of one rank
    transition_s: float = 0.5
    turn_s: float = 0.0  # of the engine's own loop


class SimulatedExecutor(Executor):
    """Stages are busy one forward at a time, and the first waits for tokens that the last has yet to sample. Each
    replica copies its swaps one after another, beside its forwards.

    `instant` takes no time at all: to measure what surrounds the engine. In `real_time` the clock is the wall's, and
    `collect` sleeps until the next completion: to load what surrounds the engine at a known rate.
    """

    def __init__(
        self,
        config: EngineConfig,
        shape: ModelShape | None = None,
        rates: HostRates | None = None,
        *,
        instant: bool = False,
        real_time: bool = False,
    ) -> None:
        self._plan = config.plan
        self._rates = rates or HostRates()
        self._instant = instant
        self.capacity = self._make_capacity(config, shape or find_shape(config))
        self._clock_s = 0.0
        self._wall_origin_s = time.monotonic() if real_time else None
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], list[Report]]]] = []
        self._stage_free_s: defaultdict[tuple[int, int], float] = defaultdict(float)
        self._copies_free_s: defaultdict[int, float] = defaultdict(float)
        self._sampled_s: dict[tuple[int, int], float] = {}  # when a slot's last token is there

    def _make_capacity(self, config: EngineConfig, shape: ModelShape) -> Capacity:
        fit = fit_model(config, shape, "simulated")
        assert fit.num_device_blocks is not None  # no pool waits for a measurement here
        self._geometry = geometry = fit.geometry
        return Capacity(
            shape=shape,
            max_model_len=fit.max_model_len,
            num_device_blocks=fit.num_device_blocks,
            num_host_blocks=fit.num_host_blocks,
            device_block_bytes=geometry.max_device_block_bytes,
            host_block_bytes=geometry.host_block_bytes,
            device="simulated",
            weights="none",
        )

    def submit(self, command: Command) -> None:
        match command:
            case Forward():
                end_s, busy_s = self._run_stages(command)
                self._at(end_s, lambda: self._report(command, self.run_forward(command), busy_s))
            case Swap():
                end_s, busy_s = self._run_copies(command)
                self._at(end_s, lambda: self._report_swap(command, busy_s))
            case Transition():
                busy_s = self._seconds(self._rates.transition_s)
                self._at(self.now() + busy_s, lambda: self._report(command, [], busy_s))

    def collect(self) -> list[Report]:
        """Advance the clock to the next completion, and return all that happen then."""
        self._clock_s += self._seconds(self._rates.turn_s)
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

    def close(self) -> None:
        self._events.clear()

    # --- what a test may replace to look inside

    def run_forward(self, forward: Forward) -> list[int]:
        """The forward completes; one token for each sampled chunk."""
        vocab = self.capacity.shape.vocab
        return [(7 + 31 * (c.start + len(c.tokens))) % vocab for c in forward.chunks if c.sample]

    def run_swap(self, swap: Swap) -> None:
        """The copy completes."""

    # --- time

    def _at(self, time_s: float, happen: Callable[[], list[Report]]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), happen))

    def _seconds(self, duration_s: float) -> float:
        return 0.0 if self._instant else duration_s

    def _run_stages(self, forward: Forward) -> tuple[float, float]:
        """When the forward ends, and how long it keeps each stage busy."""
        layout, rates = self._plan.layouts[forward.layout], self._rates
        communication_s = rates.all_reduce_token_s if layout.tp > 1 else 0.0
        work_s = forward.num_tokens * (rates.token_s / layout.tp + communication_s) / layout.pp
        busy_s = self._seconds(rates.step_s / layout.pp + work_s)
        inputs = [self._sampled_s[forward.replica, ~c.tokens[-1]] for c in forward.chunks if c.tokens[-1] < 0]
        time_s = max([self.now(), *inputs])
        for stage in range(layout.pp):
            start_s = max(time_s, self._stage_free_s[forward.replica, stage])
            time_s = start_s + busy_s
            self._stage_free_s[forward.replica, stage] = time_s
        self._sampled_s.update({(forward.replica, c.slot): time_s for c in forward.chunks if c.sample})
        return time_s, busy_s

    def _run_copies(self, swap: Swap) -> tuple[float, float]:
        """When the swap ends, and how long it keeps each rank's copies busy."""
        rank_bytes = len(swap.device_blocks) * self._geometry.host_block_bytes / self._layout(swap).ranks_per_replica
        start_s = max(self.now(), self._copies_free_s[swap.replica])
        if swap.to_host:
            start_s = max(start_s, *(self._stage_free_s[swap.replica, s] for s in range(self._layout(swap).pp)), 0.0)
        busy_s = self._seconds(rank_bytes / self._rates.swap_bytes_per_s)
        self._copies_free_s[swap.replica] = start_s + busy_s
        return start_s + busy_s, busy_s

    def _layout(self, command: Forward | Swap) -> Layout:
        return self._plan.layouts[command.layout]

    # --- reports

    def _report(
        self, command: Forward | Swap | Transition, tokens: list[int], busy_s: float, num_bytes: int = 0
    ) -> list[Report]:
        if isinstance(command, Transition):
            return [Report(rank, command.id, seconds=busy_s) for rank in range(self._plan.world_size)]
        layout = self._layout(command)
        sampling_rank = layout.sampling_rank(command.replica)
        return [
            Report(rank, command.id, tokens if rank == sampling_rank else [], busy_s, num_bytes)
            for rank in layout.replica_ranks(command.replica)
        ]

    def _report_swap(self, swap: Swap, busy_s: float) -> list[Report]:
        self.run_swap(swap)
        total = len(swap.device_blocks) * self._geometry.host_block_bytes
        return self._report(swap, [], busy_s, total // self._layout(swap).ranks_per_replica)
