"""Where the time of a run went: each second is a step's, idle for a named cause, or without work."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from seesaw.engine.core import Core
from seesaw.engine.sampling.params import SamplingParams
from seesaw.engine.scheduler.idle import HOST, PIPELINE, SWAP_IN, WEIGHTS, IdleTime
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import Command, Forward, Report
from seesaw.engine.wire.messages import Add, Stats
from tests.engine.scheduler.symbolic import SymbolicExecutor, measured
from tests.engine.scheduler.test_scheduler import make_config, run


class Watched(SymbolicExecutor):
    """Sums up what the slowest ranks of all replicas say that steps took."""

    def __init__(self, config: EngineConfig, turn_s: float = 0.0, **changes: float) -> None:
        super().__init__(config, measured(config, **changes), turn_s=turn_s)
        self._forwards: set[int] = set()
        self._busy_s: dict[int, float] = {}

    def submit(self, command: Command) -> None:
        if isinstance(command, Forward):
            self._forwards.add(command.id)
        super().submit(command)

    def collect(self) -> list[Report]:
        reports = super().collect()
        for report in reports:
            if report.id in self._forwards:
                self._busy_s[report.id] = max(report.seconds, self._busy_s.get(report.id, 0.0))
        return reports

    @property
    def busy_s(self) -> float:
        return sum(self._busy_s.values())


def served(config: EngineConfig, executor: Watched, pauses_s: tuple[float, ...] = (0.0,)) -> tuple[Stats, float]:
    """Some requests after each pause; the counters, and the seconds from the first request to the end."""
    core = Core(config, executor)
    for number, pause_s in enumerate(pauses_s):
        executor.sleep_until(executor.now() + pause_s)
        for i in range(12):
            core.add(Add(f"{number}.{i}", [1 + i] * (8 + i), SamplingParams(max_tokens=20, ignore_eos=True)))
        run(core)
    stats = core.stats()
    core.close()
    return stats, executor.now()


@pytest.mark.parametrize("turn_s", [0.0, 1e-3, 8e-3])
def test_every_second_of_one_layout_is_accounted_for(turn_s: float) -> None:
    config = make_config("T2", num_device_blocks=400)
    executor = Watched(config, turn_s)
    pauses_s = (3.0, 0.0, 5.0)
    stats, total_s = served(config, executor, pauses_s)
    assert executor.busy_s + sum(stats.idle_seconds.values()) + sum(pauses_s) == pytest.approx(total_s)
    assert stats.idle_seconds.keys() <= {HOST}
    # A loop slower than a step keeps the device waiting, and a faster one, which is a step ahead, only at the ends.
    assert (stats.idle_seconds.get(HOST, 0.0) > 0.2 * executor.busy_s) is (turn_s > 5e-3)


def test_a_pipeline_waits_to_be_filled() -> None:
    config = make_config("P4", num_device_blocks=400)
    executor = Watched(config)
    stats, total_s = served(config, executor)
    assert executor.busy_s + stats.idle_seconds[PIPELINE] == pytest.approx(total_s)


def test_replicas_count_for_their_share() -> None:
    config = make_config("D2", num_device_blocks=400)
    executor = Watched(config)
    stats, total_s = served(config, executor)
    assert executor.busy_s / 2 + sum(stats.idle_seconds.values()) == pytest.approx(total_s, rel=0.05)


def test_changes_of_layout_are_idle_for_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    config = make_config("T4", "D2T2", num_device_blocks=100, num_host_blocks=100, trace=str(path))
    executor = Watched(config)
    stats, total_s = served(config, executor)
    parts_s = stats.transition_seconds["evacuate"] + stats.transition_seconds["weights"]
    assert stats.idle_seconds[WEIGHTS] == pytest.approx(parts_s)
    assert sum(stats.idle_seconds.values()) < total_s
    spans = [event for event in json.loads(path.read_text())["traceEvents"] if event.get("cat") == "idle"]
    weights_s = [event["dur"] / 1e6 for event in spans if event["name"] == WEIGHTS]
    assert max(weights_s) >= 0.5 and {event["tid"] for event in spans} == {0, 1}


def test_slow_copies_are_what_is_waited_for() -> None:
    config = make_config("P2", "T2", num_device_blocks=60, num_host_blocks=100)
    fast, _ = served(config, Watched(config))
    slow, total_s = served(config, Watched(config, swap_in_bytes_per_s=1e5))
    assert fast.idle_seconds.get(SWAP_IN, 0.0) < 0.01
    assert slow.idle_seconds[SWAP_IN] > 0.3 * total_s


def test_what_was_measured_is_told_and_corrected(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    config = make_config("P2", "T2", num_device_blocks=100, num_host_blocks=100, trace=str(path))
    executor = Watched(config)
    executor.capacity = dataclasses.replace(executor.capacity, times=measured(config, transition_s=1.0))  # takes 0.5 s
    stats, _ = served(config, executor)
    [event] = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "measured"]
    assert stats.speeds is not None
    assert stats.speeds.layouts.keys() == event["args"]["layouts"].keys() == {"P2", "T2"}
    assert event["args"]["transition_seconds"] == 1.0 and 0.5 < stats.speeds.transition_seconds < 0.8
    speed = stats.speeds.layouts["T2"]
    assert list(speed.decode_seconds) == [1, 8] and speed.decode_seconds[1] == pytest.approx(2.02e-3, rel=0.01)
    assert speed.prefill_tokens_per_second > 1e4


def test_a_report_that_was_seen_late_is_no_idle_time() -> None:
    idle = IdleTime(None)
    idle.entered(1, 0.0)
    idle.sent(0, 0.0)
    idle.completed(0, 1.0, 1.3, HOST, more=True)  # the device was done at 1.0, and went on at once
    idle.completed(0, 1.0, 2.0, HOST, more=True)
    idle.completed(0, 1.0, 3.5, HOST, more=False)
    assert idle.seconds() == {HOST: pytest.approx(0.5)}
