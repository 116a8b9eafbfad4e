"""Sampling: exact supports, sane frequencies, and tokens that depend on (seed, position) alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.engine.sampling import sampler
from seesaw.engine.sampling.params import RowSampling
from seesaw.engine.sampling.sampler import best, restrict, sample


def _row(
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0, min_p: float = 0.0, seed: int = 0
) -> RowSampling:
    return RowSampling(temperature, top_p, top_k, min_p, seed)


def _logits(rows: int, vocab: int = 97, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 2


def _support(logits: torch.Tensor, row: RowSampling) -> set[int]:
    return set(restrict(logits[None], [row])[0].isfinite().nonzero().flatten().tolist())


def test_greedy_takes_the_first_of_equals() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [2.0, 2.0, 2.0, 2.0], [-1.0, -9.0, -3.0, 5.0]])
    assert sample(logits, [_row(0.0)] * 3, [0, 1, 2]).tolist() == [1, 0, 3]
    assert sample(logits, [_row(1e-6)] * 3, [0, 1, 2]).tolist() == [1, 0, 3]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6))
def test_a_row_does_not_depend_on_its_batch(order: list[int], size: int) -> None:
    logits = _logits(6)
    rows = [
        _row(seed=1),
        _row(0.0),
        _row(0.7, top_p=0.8, seed=2),
        _row(1.3, top_k=5, seed=3),
        _row(min_p=0.1, seed=-4),
        _row(2.0, 0.9, 40, 0.02, seed=2**63 - 1),
    ]
    positions = [3, 4, 0, 100000, 7, 1]
    alone = [int(sample(logits[i : i + 1], [rows[i]], [positions[i]])) for i in range(6)]
    picked = order[:size]
    together = sample(logits[picked], [rows[i] for i in picked], [positions[i] for i in picked])
    assert together.tolist() == [alone[i] for i in picked]


@pytest.mark.parametrize("cuts", [[0, 97], [0, 40, 97], [0, 1, 33, 90, 97]])
def test_the_best_of_all_parts_is_sampled(cuts: list[int]) -> None:
    rows, positions = [_row(seed=1), _row(0.0), _row(0.7, seed=-4), _row(3.0, seed=2**63 - 1)], [3, 4, 0, 7]
    logits = _logits(4)
    logits[1, [60, 95]] = 50.0  # equals in one part, or in two
    parts = [best(logits[:, a:b], rows, positions, a, 97) for a, b in pairwise(cuts)]
    scores, ids = (torch.stack(column, dim=1) for column in zip(*parts, strict=True))
    winners = ids.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    assert winners.tolist() == sample(logits, rows, positions).tolist()


def test_seed_and_position_change_the_noise() -> None:
    logits = torch.zeros(1, 1000)
    draws = [int(sample(logits, [_row(seed=seed)], [position])) for seed in range(-8, 8) for position in range(16)]
    assert len(set(draws)) > 200  # of 256 draws from 1000, about 226 differ
    assert draws == [int(sample(logits, [_row(seed=s)], [p])) for s in range(-8, 8) for p in range(16)]


@pytest.mark.parametrize("top_k", [1, 2, 7, 96, 97, 500])
def test_top_k_support(top_k: int) -> None:
    logits = _logits(1)[0]
    assert _support(logits, _row(top_k=top_k)) == set(logits.topk(min(top_k, 97)).indices.tolist())


def test_off_means_everything() -> None:
    logits = _logits(1)[0]
    for row in (_row(), _row(top_k=0), _row(top_k=-1)):
        assert _support(logits, row) == set(range(97))


@pytest.mark.parametrize("nucleus_tokens", [1, 8, 1024])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_top_p_support(monkeypatch: pytest.MonkeyPatch, nucleus_tokens: int, top_p: float, temperature: float) -> None:
    """The shortest prefix of the ranking whose mass reaches p, however few tokens are ranked at first."""
    monkeypatch.setattr(sampler, "_NUCLEUS_TOKENS", nucleus_tokens)
    logits = _logits(1, seed=5)[0]
    mass = (logits.double() / temperature).softmax(-1)
    expected: set[int] = set()
    for token in mass.argsort(descending=True).tolist():
        expected.add(token)
        if sum(float(mass[t]) for t in expected) >= top_p:
            break
    assert _support(logits, _row(temperature, top_p=top_p)) == expected


@pytest.mark.parametrize("min_p", [0.01, 0.2, 1.0])
def test_min_p_support(min_p: float) -> None:
    logits = _logits(1, seed=6)[0]
    mass = (logits.double() / 1.5).softmax(-1)
    expected = set((mass >= min_p * mass.max()).nonzero().flatten().tolist())
    assert _support(logits, _row(1.5, min_p=min_p)) == expected


def test_restrictions_follow_each_other() -> None:
    """Top-p counts the mass that top-k left, min-p comes last."""
    logits = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).log()
    assert _support(logits, _row(top_p=0.72)) == {0, 1, 2}
    assert _support(logits, _row(top_k=2, top_p=0.72)) == {0, 1}  # 0.4 / 0.7 is 0.57, not enough
    assert _support(logits, _row(top_k=2, top_p=0.5)) == {0}
    assert _support(logits, _row(top_k=4, top_p=0.95, min_p=0.3)) == {0, 1, 2}


def test_ties_with_the_last_kept_stay() -> None:
    logits = torch.tensor([2.0, 1.0, 1.0, 1.0, 0.0])
    assert _support(logits, _row(top_k=2)) == {0, 1, 2, 3}
    assert _support(logits, _row(top_p=0.6)) == {0, 1, 2, 3}


@pytest.mark.parametrize(("row", "drawn_from"), [(_row(), 5), (_row(0.5), 5), (_row(1.7, top_k=3), 3)])
def test_frequencies(row: RowSampling, drawn_from: int) -> None:
    """Pearson's chi-square of 4000 draws with fixed seeds against the softmax of the scores."""
    logits, draws = torch.tensor([1.0, 0.0, -0.5, 0.7, -1.0]), 4000
    expected = restrict(logits[None], [row])[0].softmax(-1) * draws
    rows = [_row(row.temperature, row.top_p, row.top_k, row.min_p, seed=i % 40) for i in range(draws)]
    tokens = sample(logits.expand(draws, -1), rows, [i // 40 for i in range(draws)])
    counts = torch.bincount(tokens, minlength=5).float()
    possible = expected > 0
    assert int(possible.sum()) == drawn_from
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 20  # 99.95 % quantile for 4 degrees of freedom
