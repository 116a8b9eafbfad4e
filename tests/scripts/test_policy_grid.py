"""The command line of the grid of policies: a few cells, and what is saved of them."""

from __future__ import annotations

import json
from pathlib import Path

import policy_grid
import pytest


def test_a_few_cells_are_run_and_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "grid.json"
    flags = ["--only", "2xh100-nvlink codellama-34b P2->T2 long", "--every", "2", "--num-requests", "5"]
    assert policy_grid.main([*flags, "--output-json", str(path)]) == 0
    saved = json.loads(path.read_text())
    assert len(list(policy_grid.cells())) >= 200 and len(saved) == 3
    for cell in saved:
        assert set(cell["systems"]) == {"cost", "paper", cell["prefill"], cell["decode"]}
        assert all(system["total_s"] > 0 for system in cell["systems"].values())
    *rows, latency, first_token, gap = capsys.readouterr().out.splitlines()
    assert len([row for row in rows if "->" in row]) == 3
    assert "below 0.98: " in "".join(rows) and latency.startswith("  mean_latency_s over the best layout's: mean ")
    assert "median_first_token_s" in first_token and "largest_gap_s" in gap


def test_cells_are_chosen_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert policy_grid.main(["--only", "2xl4 llama2-7b P2->T2 long offline", "--num-requests", "3"]) == 0
    assert "1 cells" in capsys.readouterr().out


def test_all_systems_of_a_cell_get_the_same_requests() -> None:
    for name in policy_grid.WORKLOADS:
        jobs = policy_grid.workload(name, 20)
        assert len(jobs) == 20 and jobs == policy_grid.workload(name, 20)


def test_a_model_that_leaves_no_room_is_left_out() -> None:
    cell = policy_grid.Cell("2xl4", "llama2-70b", "P2", "T2", "long", 0.0)
    assert policy_grid.run_cell(cell, 1) is None
