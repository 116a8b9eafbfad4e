"""Jobs on the simulated host: what their order is worth, in its seconds."""

from __future__ import annotations

import batch_order
import pytest

from seesaw.engine.bench.workload import arrange, prefix_repetition, read_lengths


def test_a_job_that_begins_with_its_long_rows_ends_sooner() -> None:
    jobs = read_lengths(batch_order.CONFIGS / "lengths" / "sharegpt.csv", 240, max_output_tokens=400)
    runs = {system: batch_order.run(batch_order.make_config(16), jobs, system) for system in batch_order.SYSTEMS}
    assert runs["known"].total_s < 0.97 * runs["file"].total_s
    assert runs["learned"].total_s < 1.03 * runs["file"].total_s  # by no more than who happens to be last


def test_rows_that_begin_alike_are_found_in_the_cache() -> None:
    jobs = arrange(prefix_repetition(200, 1500, 20, 4, 40).jobs, "shuffle", 0)
    config = batch_order.make_config(8, kv_cache_bytes=2 << 30)
    found = {system: batch_order.run(config, jobs, system).cached_share for system in ("file", "known")}
    assert found["known"] > 0.7 > 0.5 > found["file"]


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert batch_order.main(["--num-rows", "24", "--max-num-seqs", "8", "--shuffles", "1"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row.partition(":")[0] for row in rows][:2] == ["sharegpt", "arxiv"] and len(rows) == 4
    assert all(row.count("found") == 3 for row in rows)
