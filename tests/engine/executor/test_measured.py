"""Real workers time themselves at the start, in every layout of their plan."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest

from engine.config import EngineConfig
from engine.executor.processes import ProcessExecutor
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.processes


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
