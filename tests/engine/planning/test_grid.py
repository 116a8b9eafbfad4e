"""Some cells of `scripts/policy_grid.py`, with few requests: the laws of the design, on hosts that are not there."""

from __future__ import annotations

from dataclasses import replace

import policy_grid
import pytest

from seesaw.engine.bench.workload import Job
from seesaw.engine.model.config_json import read_shape

# Of every plan but those of eight L4s, whose ratios are near eight A10s', and of workloads that are quick to simulate.
CELLS = [
    policy_grid.Cell(*plan, ("sharegpt", "long")[number % 2], 0.0)
    for number, plan in enumerate(plan for plan in policy_grid.HOSTS_AND_PLANS if plan[0] != "8xl4")
]
CELLS.append(policy_grid.Cell("2xh100-slow-links", "codellama-34b", "P2", "T2", "long", 1.2))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_default_policy_is_as_good_as_the_best(cell: policy_grid.Cell) -> None:
    runs = policy_grid.run_cell(cell, num_requests=100)
    if runs is None:
        pytest.skip("the model does not fit this host")
    over_best, over_paper = policy_grid.ratios(runs)
    assert over_best >= 0.98, runs
    assert over_paper >= 0.99, runs


@pytest.mark.parametrize("apart_s", [0.0, 0.002], ids=["at once", "one by one"])
def test_requests_that_come_at_once_behind_a_few_others_move_nobody(apart_s: float) -> None:
    """As in every benchmark behind its warm-up. Too few wait for a surge to pay, and no more come."""
    cell = policy_grid.Cell("2xh100-slow-links", "codellama-34b", "P2", "T2", "sharegpt", 0.0)
    config = policy_grid.config_for(cell, read_shape(policy_grid.CONFIGS / "models" / cell.model))
    assert config is not None
    jobs = [Job(16, 4)] * 4 + policy_grid.workload(cell.workload, 100)
    arrivals_s = [0.0] * 4 + [0.5 + index * apart_s for index in range(100)]
    alone = policy_grid.run(replace(config, prefill="T2", decode=""), jobs, arrivals_s)
    assert policy_grid.run(config, jobs, arrivals_s) == alone
