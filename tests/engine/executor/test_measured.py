"""Real workers time themselves: at the start, in every layout of their plan, and in every step."""

from __future__ import annotations

import math
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest

from seesaw.engine.executor.processes import ProcessExecutor
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.values.config import EngineConfig
from seesaw.engine.wire.commands import Chunk, Forward, Report, SlotInit, TableUpdate
from tests.patience import PATIENCE_S
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes

GREEDY = RowSampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layers=5, kv_heads=2)


@pytest.mark.parametrize(
    ("prefill", "decode", "weights"),
    [
        ("T1", "", "auto"),
        ("T2", "", "auto"),
        ("P2", "", "auto"),
        ("P2", "T2", "reload"),
        ("T2P2", "", "auto"),
        ("D2", "T2", "resident"),
        ("P4", "T4", "reload"),  # more shards than KV heads: some write nothing to the host
    ],
)
def test_every_stage_of_every_layout_is_timed(
    checkpoint: Path, prefill: str, decode: str, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_POISON_KV", "1")
    monkeypatch.setenv("SEESAW_POISON_WEIGHTS", "1")
    config = EngineConfig(
        model=str(checkpoint),
        device="cpu",
        prefill=prefill,
        decode=decode,
        weights=weights,  # type: ignore[arg-type]
        max_model_len=96,
        block_size=4,
        num_device_blocks=60,
        num_host_blocks=40,
        max_num_seqs=6,
        max_num_batched_tokens=64,
    )
    lines: list[str] = []
    executor = ProcessExecutor(config, lines.append)
    executor.close()
    plan, times = config.plan, executor.capacity.times
    assert [len(stages) for stages in times.layouts] == [layout.pp for layout in plan.layouts]
    for stage in (stage for stages in times.layouts for stage in stages):
        # Up to the largest steps; a smaller one may have been slow by chance.
        assert stage.prefill.counts in ((16.0, 64.0), (64.0,)) and stage.decode.counts in ((1.0, 6.0), (6.0,))
        for curve in (stage.prefill, stage.decode):
            assert all(math.isfinite(seconds) and seconds > 0 for seconds in curve.seconds)
            assert all(a <= b for a, b in pairwise(curve.seconds))
        assert 0 <= stage.pair_s < math.inf and 0 <= stage.context_s < math.inf
    rates = times.swap_out_bytes_per_s, times.swap_in_bytes_per_s
    if plan.is_static:
        assert times.transition_s == 0 and rates == (math.inf, math.inf)
    else:
        assert 0 < times.transition_s < math.inf and all(0 < rate < math.inf for rate in rates)
    assert len([line for line in lines if " measured: " in line]) == len(plan.layouts)


def test_a_stage_that_waits_for_another_is_not_busy(checkpoint: Path) -> None:
    config = EngineConfig(
        model=str(checkpoint), device="cpu", prefill="P2", max_model_len=64, block_size=4, num_device_blocks=16
    )
    executor = ProcessExecutor(config)
    try:
        first = executor._ranks._processes[0].pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        chunk, table, init = Chunk(0, 0, [1, 2, 3], True), TableUpdate(0, 0, [0]), SlotInit(0, GREEDY)
        executor.submit(Forward(1, 0, 0, [chunk], [table], [init]))
        time.sleep(1.0)
        os.kill(first, signal.SIGCONT)
        reports: list[Report] = []
        while len(reports) < 2:
            assert executor.wait_handle().poll(int(1000 * PATIENCE_S)), "no report came"
            reports += executor.collect()
    finally:
        executor.close()
    assert all(0 < report.seconds < 0.8 for report in reports), reports
